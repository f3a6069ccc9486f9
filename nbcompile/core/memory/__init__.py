"""How long values live, and where in an arena they lie."""
