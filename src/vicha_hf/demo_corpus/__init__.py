"""Embedded demo corpus: scenes composed of real image sprites, with captions, concepts and exact boxes."""

from .builder import DemoCorpus, build_demo_corpus
from .parameters import DemoCorpusParameters


__all__ = ["DemoCorpus", "DemoCorpusParameters", "build_demo_corpus"]
