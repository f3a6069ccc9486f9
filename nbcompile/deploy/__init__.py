"""From a trained network to the file of a device: deploy form, calibration, budgets."""
