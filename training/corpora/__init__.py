"""More speech: a manifest of public repositories, and a command that makes training shards of them."""
