"""Concepts that a model finds in the images of the demo corpus, measured against the objects that are in them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..concepts import ConceptCorpus, ConceptIndex, ConceptSelector, DualEncoder, build_vocabulary
from ..concepts.annotation_writer import AnnotationRow, write_annotations
from ..data.annotations import Annotations
from ..data.image_files import open_image


# Short, like the captions.
PROMPTS = ("a {}",)
CONCEPTS_PER_IMAGE = 15


def own_selector(train: Annotations, model, processor) -> ConceptSelector:
    """
    A selector that ranks the nouns of the training captions by the model's own projections.

    Args:
        train: records whose captions give the vocabulary.
        model: with a joint space of images and texts.
        processor: the model's.
    """
    # The first caption of each image names enough, in a third of the time.
    words = build_vocabulary(record.captions[0] for record in train)
    encoder = DualEncoder(model, processor)
    k = min(CONCEPTS_PER_IMAGE, len(words))
    return ConceptSelector(ConceptIndex.build(list(words), encoder, PROMPTS, k, own=True), encoder)


def nouns_shown(annotation_file: Path) -> list[set[str]]:
    """The nouns of the objects in each image of a split, in the order of its records."""
    records = json.loads(annotation_file.read_text(encoding="utf-8"))
    return [{item["noun"] for item in record["objects"]} for record in records]


def concept_quality(concepts: Sequence[Sequence[str]], shown: Sequence[set[str]]) -> dict[str, float]:
    """
    Precision of the first five concepts and recall of the first fifteen, in percent.

    Args:
        concepts: per image, the best first.
        shown: per image the nouns of its objects.

    Returns:
        `concept_precision_at_5`: the share of five concepts that are in the image. `concept_recall_at_15`: the share of
        all images' objects that are among the fifteen concepts of their image.
    """
    pairs = list(zip(concepts, shown, strict=True))
    among_five = sum(len(nouns.intersection(words[:5])) for words, nouns in pairs)
    among_fifteen = sum(len(nouns.intersection(words[:CONCEPTS_PER_IMAGE])) for words, nouns in pairs)
    return {
        "concept_precision_at_5": 100 * among_five / max(1, 5 * len(pairs)),
        "concept_recall_at_15": 100 * among_fifteen / max(1, sum(len(nouns) for nouns in shown)),
    }


def write_found_concepts(annotation_file: Path, output: Path, selector: ConceptSelector) -> Path:
    """
    Writes a split of the corpus with the concepts that a selector finds in the place of the generator's.

    Args:
        annotation_file: of the split.
        output: *.jsonl.
        selector: looks at every image.

    Returns:
        `output`.
    """
    corpus = ConceptCorpus(str(annotation_file))

    def rows() -> Iterator[AnnotationRow]:
        for start in range(0, len(corpus.records), selector.batch_size):
            places = range(start, min(start + selector.batch_size, len(corpus.records)))
            records = [corpus.records[place] for place in places]
            images = [open_image(record.image, record.where) for record in records]
            for record, words in zip(records, selector.words(images), strict=True):
                yield AnnotationRow({**record.fields, "concepts": words}, record.image, record.where)

    write_annotations(output, rows)
    return output
