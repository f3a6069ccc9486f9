"""TFLite: lowered, quantized, run in the interpreters of devices before the file gets its name."""
