"""Data sets: what one is, and the kinds that `--data` names."""
