"""A page to try models on: search, ask, ground, compare, and see the concepts (extra `page`)."""
