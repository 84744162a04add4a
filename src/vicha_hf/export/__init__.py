"""Models for other runtimes: their parts as files of ONNX or of `torch.export`."""
