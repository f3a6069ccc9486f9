"""The int8-aware finish: a trained network learns to live with the rounding of its int8 file."""
