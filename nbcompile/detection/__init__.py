"""Detectors: a YOLOv3 head on any backbone, what its maps mean, and the boxes that come of them."""
