"""What a graph says without being run: readers, aliases, constants, shapes, channels."""
