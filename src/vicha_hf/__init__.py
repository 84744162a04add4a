"""Efficient vision-language pretraining: ViCHA and ALBEF as Hugging Face models."""

__version__ = "0.1.0"
