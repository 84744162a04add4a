"""Recall@K for `evaluate.load`."""
