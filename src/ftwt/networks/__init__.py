"""Networks from where they are: architecture, weights, preparation of images, classes."""
