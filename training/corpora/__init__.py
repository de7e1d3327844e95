"""More training data: a manifest of public speech repositories, and a command that makes training shards of them."""
