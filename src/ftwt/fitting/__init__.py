"""Weights, predictors and masks fitted to a trained network: no labels, no epochs."""
