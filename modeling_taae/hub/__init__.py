"""Checkpoints from elsewhere, cards, and what may be published."""
