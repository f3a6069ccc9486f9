"""A teacher's answers, kept in a folder: the run's view of it, its record, its files."""
