"""Converts audio files and live signals to tokens and back, and describes `.taae` files and models."""
