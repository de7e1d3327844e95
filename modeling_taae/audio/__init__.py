"""Sound files of every kind, read from their start to their end."""
