"""The table of what a training run is told, in parts: `nbcompile.training.options.config` joins them."""
