"""Giants in width: which channels belong together, and wide tensors in which the original's are a part."""
