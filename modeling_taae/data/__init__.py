"""Recorded speech, whatever it is stored in."""
