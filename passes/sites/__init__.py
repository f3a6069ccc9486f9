"""Where a network can be expanded, and what takes the shift back."""
