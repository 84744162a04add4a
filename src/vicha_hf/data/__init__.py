"""Annotations, transforms, datasets and collators; import each from its own module."""
