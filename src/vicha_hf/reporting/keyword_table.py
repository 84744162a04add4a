"""Words that a model reads off images, beside what the images are known to show, as HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from .gallery import image_tag


TOP_K = 6


@dataclass
class KeywordPrediction:
    """An image and the words that a model finds in it.

    Args:
        image: what the model saw.
        concepts: what is known to be in it; words of one concept are separated by spaces ("red car").
        words: predicted words with their probabilities in [0, 1], the likeliest first.
    """

    image: Image.Image
    concepts: Sequence[str]
    words: Sequence[tuple[str, float]]

    def __post_init__(self):
        for word, probability in self.words:
            if not 0 <= probability <= 1:
                raise ValueError(f"the probability of {word!r} is {probability}; expected a number from 0 to 1")

    def is_right(self, word: str) -> bool:
        """Whether a word is one of the words of the concepts, upper and lower case alike."""
        return word.lower() in " ".join(self.concepts).lower().split()


def has_keyword_head(model) -> bool:
    """Whether a model can say which words an image contains (a pretraining head of SIMLA with `psl_weight` above 0)."""
    return getattr(model, "psl", None) is not None


def predict_keywords(
    model, processor, images: Sequence[Image.Image], concepts: Sequence[Sequence[str]], top_k: int = TOP_K
) -> list[KeywordPrediction]:
    """
    The words that a model finds in each image.

    Args:
        model: with a keyword head, see [`has_keyword_head`].
        processor: the model's.
        images: n of them.
        concepts: for each image what is known to be in it.
        top_k: words per image.
    """
    inputs = processor(images=list(images), return_tensors="pt").to(model.device)
    words = processor.decode_keywords(model.predict_keywords(**inputs, top_k=top_k))
    return [KeywordPrediction(*row) for row in zip(images, concepts, words, strict=True)]


def keyword_section_html(predictions: Sequence[KeywordPrediction]) -> str:
    """
    A section of a report: one row for each image, right words marked; "" without predictions.

    A word counts as right if it is among the image's concepts. Words that are true of the image but not annotated
    count as wrong, so the share is a lower bound.
    """
    if not predictions:
        return ""
    num_words = sum(len(prediction.words) for prediction in predictions)
    num_right = sum(prediction.is_right(word) for prediction in predictions for word, _ in prediction.words)
    rows = "".join(
        f"<tr><td class=row>{image_tag(prediction.image, 'image')}</td>"
        f"<td class='row wrap'>{escape(', '.join(prediction.concepts)) or '&ndash;'}</td>"
        f"<td class='row wrap'>{''.join(_word(prediction, *entry) for entry in prediction.words)}</td></tr>"
        for prediction in predictions
    )
    return (
        "<h2>Words read off images</h2><p class=note>What the keyword head finds in an image alone, with its "
        f"probability. {num_right} of {num_words} words name something that is known to be shown (marked).</p>"
        "<div class=scroll><table class=keywords><thead><tr><th class=row>Image</th><th class=row>Shown</th>"
        f"<th class=row>Predicted words</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _word(prediction: KeywordPrediction, word: str, probability: float) -> str:
    right = prediction.is_right(word)
    mark = " &#10003;" if right else ""
    return (
        f"<span class='word{' right' if right else ''}'>{escape(word)}{mark} <small>{probability:.2f}</small></span>"
    )
