"""Scales, zero points, biases, and the layers that stay in float."""
