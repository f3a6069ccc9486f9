"""Images without labels: where they come from, and how they come beside labelled ones."""
