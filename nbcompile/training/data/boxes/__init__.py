"""Data sets whose labels are boxes."""
