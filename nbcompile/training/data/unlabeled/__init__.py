"""Images without labels, beside those of a run."""
