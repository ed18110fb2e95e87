"""Models for other programs: MONAI bundle, ONNX and exported programs."""
