"""Entropy coding of tokens with a prior."""
