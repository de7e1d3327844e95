"""Language models of speech tokens."""
