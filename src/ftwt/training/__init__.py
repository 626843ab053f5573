"""Training: one loop, what learns in it, and what a run leaves on disk."""
