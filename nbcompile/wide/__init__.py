"""Giants in width as they are held: the wide tensors, the part that a width shows, and what files have of them."""
