"""The interpreters of devices: they run a file and say what it gives and what it takes."""
