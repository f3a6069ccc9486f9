"""What acts on every channel by itself, as one function: norms, factors and activations of inserted layers."""
