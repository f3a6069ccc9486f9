"""What is written beside a .tflite for a board: sources, resolver, budgets, benchmark."""
