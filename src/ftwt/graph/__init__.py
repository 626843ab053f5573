"""What a network looks like: its traced graph, its units, and which channels can be non-zero."""
