"""What was measured, as data that the terminal, the report and --json show."""
