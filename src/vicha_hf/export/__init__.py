"""Models for other runtimes: image encoder, text encoder and pair scorer as ONNX files."""
