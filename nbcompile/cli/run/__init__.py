"""What the commands do, without parsing and printing: each returns what it found, JSON-able."""

from nbcompile.core.progress import step

with step("loading PyTorch"):  # seconds, and whatever the command is, it needs it
    import torch  # noqa: F401
