"""A network as data: its graph, its modules, its weights, read with an allow-list."""
