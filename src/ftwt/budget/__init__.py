"""What may be computed: estimated before training, held during it, settled after it."""
