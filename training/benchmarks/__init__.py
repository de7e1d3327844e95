"""Measurements of speed, determinism, file sizes, exports and probes."""
