"""VQA accuracy for `evaluate.load`."""
