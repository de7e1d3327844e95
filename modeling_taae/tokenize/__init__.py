"""Corpora of speech to data sets of tokens."""
