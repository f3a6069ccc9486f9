"""Affine regions of a graph: found, lifted, planned, merged, and made layers again."""
