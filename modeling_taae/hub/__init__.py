"""Converts checkpoints, writes cards, and publishes models, tokens and Spaces."""
