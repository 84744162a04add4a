"""Accuracy of entailment and reasoning for `evaluate.load`."""
