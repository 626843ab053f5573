"""Figures and a page from result files alone: no network, no torch."""
