"""Exports encoder and decoder as programs that run without this package."""
