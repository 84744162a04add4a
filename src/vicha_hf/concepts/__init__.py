"""Visual concepts: a vocabulary from captions, the concepts of every image, and how to judge them (ViCHA, arXiv 2208.13628)."""

from ..models.concept_ranking import select_concepts
from ..models.concept_selector import ConceptIndex, ConceptSelector, DualEncoder
from .building import ConceptFiles, build_concepts, make_vocabulary
from .corpus import ConceptCorpus
from .embedding import embed_captions, embed_concepts, embed_images
from .embedding_store import EmbeddingStore
from .filtering import filter_pairs
from .inspection import inspect_concepts
from .selection import select_for_corpus
from .vocabulary import build_vocabulary, read_vocabulary, write_vocabulary


__all__ = [
    "ConceptCorpus",
    "ConceptFiles",
    "ConceptIndex",
    "ConceptSelector",
    "DualEncoder",
    "EmbeddingStore",
    "build_concepts",
    "build_vocabulary",
    "embed_captions",
    "embed_concepts",
    "embed_images",
    "filter_pairs",
    "inspect_concepts",
    "make_vocabulary",
    "read_vocabulary",
    "select_concepts",
    "select_for_corpus",
    "write_vocabulary",
]
