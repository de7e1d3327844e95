"""The writers of the published cards."""
