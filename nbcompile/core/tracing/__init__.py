"""From a module to its graph, as a whole or in pieces."""
