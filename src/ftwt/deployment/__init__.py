"""A network as one file that runs elsewhere, and images shown to it."""
