"""What each help page ends with."""

EXAMPLES = {
    "nbcompile": """\
Examples:
  $ nbcompile fuse 'timm:resnet18?pretrained=true' -o resnet18.onnx
  $ nbcompile fuse 'torchvision:mobilenet_v2?pretrained=true' -o tiny.tflite \\
      --calibration images/
  $ nbcompile expand nbcompile:mcunet -o giant.pt""",
    "expand": """\
Examples:
  $ nbcompile expand nbcompile:mcunet -o giant.pt
  $ nbcompile expand 'timm:resnet18?num_classes=10' -o giant.pt --where first:3
  $ nbcompile expand 'timm:resnet18?pretrained=true' -o giant.pt --preserve""",
    "widen": """\
Examples:
  $ nbcompile widen nbcompile:mcunet -o giant.pt
  $ nbcompile widen 'timm:resnet18?pretrained=true' -o giant.pt \\
      --factors 1,2 --inner 1,2,3 --explain""",
    "train": """\
Examples:
  $ nbcompile train 'nbcompile:dscnn?num_classes=10&in_channels=1' \\
      -o trained.pt --data digits --epochs 20
  $ nbcompile train giant.pt -o trained.pt --data imagefolder:photos
  $ nbcompile train giant.pt -o trained.pt --data imagefolder:photos --resume""",
    "fuse": """\
Examples:
  $ nbcompile fuse trained.pt -o tiny.onnx
  $ nbcompile fuse 'timm:resnet18?pretrained=true' -o resnet18.onnx
  $ nbcompile fuse trained.pt -o tiny.tflite --calibration images/
  $ nbcompile fuse trained.pt -o tiny.tflite --calibration images/ \\
      --target mcu --board pico --report report.html""",
    "verify": """\
Examples:
  $ nbcompile verify tiny.onnx --against nbcompile:mcunet
  $ nbcompile verify tiny.onnx --against trained.pt""",
    "inspect": """\
Examples:
  $ nbcompile inspect trained.pt
  $ nbcompile inspect torchvision:mobilenet_v2 --json -
  $ nbcompile inspect nets:Net --input 1x3x96x96""",
    "report-bug": """\
Examples:
  $ nbcompile report-bug
  $ nbcompile report-bug nets:Net --input 1x3x96x96 -o bug.md""",
}
"""By command; each line is run through the command's parser by a test."""
