"""Grounding accuracy for `evaluate.load`."""
