"""Metric scripts for `evaluate.load`, one folder each."""
