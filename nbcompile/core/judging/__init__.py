"""Whether outputs are those of a network."""
