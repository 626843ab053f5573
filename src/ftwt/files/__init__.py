"""Files written whole or not at all: JSON, tensors, pictures; and where results come from."""
