"""Accuracy and work of a network, on images as they are and corrupted; recordings of it."""
