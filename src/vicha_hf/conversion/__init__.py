"""Published checkpoints (.pth) -> Hugging Face folders."""

from .convert import convert_checkpoint


__all__ = ["convert_checkpoint"]
