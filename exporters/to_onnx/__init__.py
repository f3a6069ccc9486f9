"""ONNX: exported by torch, simplified, run in ONNX Runtime before the file gets its name."""
