"""From core ATen operators to TensorFlow's, channels last."""
