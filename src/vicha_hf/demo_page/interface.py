"""The page itself: a tab for each thing that the models can do (Gradio)."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ..search.building import build_index
from ..search.grounded_image import draw_grounding
from ..search.image_index import Hit, ImageIndex
from ..search.index_files import MANIFEST_FILE, Manifest
from .models import PageModels


CONCEPTS_SHOWN = 15
RESULTS_SHOWN = 12
# Longer side of a heat map, pixels: those of small images are enlarged.
SMALLEST_SHOWN = 480


def require_gradio():
    """The library of the page. Raises a `ValueError` where it is not installed."""
    try:
        import gradio
    except ImportError as error:
        raise ValueError("the page needs Gradio: pip install vicha_hf[page]") from error
    return gradio


def build_page(models: PageModels, images: str | None = None, index: str | None = None):
    """
    A page, ready to be launched.

    Args:
        models: that it shows.
        images: folder of images or annotation file to search in; without it there is no search.
        index: folder where their index is kept; by default one that is made anew for this page.

    Returns:
        A `gradio.Blocks`.

    Raises:
        ValueError: Gradio is not installed, or images without a model that can search.
    """
    gradio = require_gradio()
    searched = None
    if images is not None:
        if "retrieval" not in models:
            raise ValueError("searching images needs a pretrained or retrieval model among the models.")
        index = tempfile.mkdtemp(prefix="vicha-hf-page-") if index is None else index
        # An index that is there goes on as it was begun.
        begun = Manifest.read(Path(index)).concepts if (Path(index) / MANIFEST_FILE).is_file() else "given"
        build_index(images, models.folders["retrieval"], index, device=models.device, concepts=begun)
        searched = ImageIndex(index, models.folders["retrieval"], models.device)
    with gradio.Blocks(title="vicha_hf", analytics_enabled=False) as page:
        gradio.Markdown("# Try a model")
        if searched is not None:
            _search_tab(gradio, searched)
        if "grounding" in models:
            _ground_tab(gradio, models)
        if "vqa" in models:
            _ask_tab(gradio, models)
        if "retrieval" in models:
            _compare_tab(gradio, models)
        if "reasoning" in models:
            _statement_tab(gradio, models)
        if models.concept_selector is not None:
            _concepts_tab(gradio, models)
        with gradio.Tab("Models"):
            gradio.Markdown(models.describe())
    return page


def image_folders(images: str | None) -> list[str]:
    """Folders that a page may show images of, and no others."""
    if images is None:
        return []
    path = Path(images).expanduser().resolve()
    return [str(path if path.is_dir() else path.parent)]


def _search_tab(gradio, index: ImageIndex) -> None:
    def search(text: str, image: Image.Image | None):
        hits = (
            index.search(image, RESULTS_SHOWN) if image is not None else index.search(text, RESULTS_SHOWN, kind="text")
        )
        return [(hit.image, _caption(hit)) for hit in hits]

    with gradio.Tab("Search"):
        gradio.Markdown(f"{len(index):,} images. Describe one, or give an image to find others like it.")
        with gradio.Row():
            text = gradio.Textbox(label="What to look for", elem_id="search-text", scale=2)
            image = gradio.Image(label="or an image", type="pil", height=160, elem_id="search-image")
        button = gradio.Button("Search", variant="primary", elem_id="search-button")
        results = gradio.Gallery(label="Best first", columns=4, object_fit="contain", elem_id="search-results")
        _connect(gradio, button, text, search, [text, image], results)


def _caption(hit: Hit) -> str:
    score = "" if hit.score is None else f", score {hit.score:.2f}"
    return f"{hit.rank}: cosine {hit.similarity:.2f}{score}"


def _ground_tab(gradio, models: PageModels) -> None:
    def ground(image: Image.Image | None, phrase: str):
        _require(image, phrase, "phrase")
        found = models.pipelines["grounding"](image, phrase)
        place = "Nothing in the image has heat." if found["box"] is None else f"Score {found['score']:.3f}"
        drawn = draw_grounding(image, found)
        scale = max(1.0, SMALLEST_SHOWN / max(drawn.size))
        return drawn.resize([round(side * scale) for side in drawn.size], Image.Resampling.LANCZOS), place

    with gradio.Tab("Ground"):
        gradio.Markdown("Where in the image is what a phrase names?")
        with gradio.Row():
            image = gradio.Image(label="Image", type="pil", height=360, elem_id="ground-image")
            drawn = gradio.Image(
                label="Heat map and box", type="pil", height=360, interactive=False, elem_id="ground-result"
            )
        phrase = gradio.Textbox(label="Phrase", elem_id="ground-text")
        button = gradio.Button("Find", variant="primary", elem_id="ground-button")
        place = gradio.Markdown(elem_id="ground-score")
        _connect(gradio, button, phrase, ground, [image, phrase], [drawn, place])


def _ask_tab(gradio, models: PageModels) -> None:
    def ask(image: Image.Image | None, question: str):
        _require(image, question, "question")
        return {entry["answer"]: entry["score"] for entry in models.pipelines["vqa"](image, question)}

    with gradio.Tab("Ask"):
        image = gradio.Image(label="Image", type="pil", elem_id="ask-image")
        question = gradio.Textbox(label="Question", elem_id="ask-text")
        button = gradio.Button("Ask", variant="primary", elem_id="ask-button")
        answers = gradio.Label(label="Answers", elem_id="ask-result")
        _connect(gradio, button, question, ask, [image, question], answers)


def _compare_tab(gradio, models: PageModels) -> None:
    def compare(left: Image.Image | None, right: Image.Image | None, text: str):
        _require(left, "-", "image")
        _require(right, "-", "image")
        embedder = models.embedder
        embeds = embedder.encode_images(embedder.prepare_images([left, right])).embeds
        lines = [f"The images have a cosine of **{float(embeds[0] @ embeds[1]):.3f}**."]
        if text.strip():
            ranked = models.pipelines["retrieval"]([left, right], text)
            of_side = {entry["index"]: entry for entry in ranked}
            better = ("left", "right")[ranked[0]["index"]]
            lines += [f"The text fits the **{better}** image better.", "", "| | score | cosine |", "|---|---|---|"]
            lines += [
                f"| {side} | {of_side[place]['score']:.2f} | {of_side[place]['similarity']:.3f} |"
                for place, side in enumerate(("left", "right"))
            ]
        return "\n".join(lines)

    with gradio.Tab("Compare"):
        gradio.Markdown("How alike are two images, and which of them does a text fit?")
        left, right = _two_images(gradio, "compare")
        text = gradio.Textbox(label="Text (may be empty)", elem_id="compare-text")
        button = gradio.Button("Compare", variant="primary", elem_id="compare-button")
        result = gradio.Markdown(elem_id="compare-result")
        _connect(gradio, button, text, compare, [left, right, text], result)


def _statement_tab(gradio, models: PageModels) -> None:
    def judge(left: Image.Image | None, right: Image.Image | None, statement: str):
        _require(left, statement, "statement")
        _require(right, statement, "statement")
        return {entry["label"]: entry["score"] for entry in models.pipelines["reasoning"]([left, right], statement)}

    with gradio.Tab("Two images, one statement"):
        left, right = _two_images(gradio, "judge")
        statement = gradio.Textbox(label="Statement about both", elem_id="judge-text")
        button = gradio.Button("Is it true?", variant="primary", elem_id="judge-button")
        result = gradio.Label(label="Judgement", elem_id="judge-result")
        _connect(gradio, button, statement, judge, [left, right, statement], result)


def _concepts_tab(gradio, models: PageModels) -> None:
    def show(image: Image.Image | None):
        _require(image, "-", "image")
        return dict(models.concept_selector.select([image], CONCEPTS_SHOWN)[0])

    with gradio.Tab("Concepts"):
        gradio.Markdown("The visual concepts that the model's folder finds in an image, with their cosines (in %).")
        image = gradio.Image(label="Image", type="pil", elem_id="concepts-image")
        button = gradio.Button("Show", variant="primary", elem_id="concepts-button")
        result = gradio.Label(label="Concepts", num_top_classes=CONCEPTS_SHOWN, elem_id="concepts-result")
        _connect(gradio, button, None, show, [image], result)


def _two_images(gradio, name: str) -> tuple:
    with gradio.Row():
        return tuple(
            gradio.Image(label=side.capitalize(), type="pil", elem_id=f"{name}-{side}") for side in ("left", "right")
        )


def _require(image: Image.Image | None, text: str, name: str) -> None:
    if image is None:
        raise ValueError("Choose an image first.")
    if not text.strip():
        raise ValueError(f"Write a {name} first.")


def _connect(gradio, button, textbox, answer: Callable, inputs: list, outputs) -> None:
    """Runs `answer` on a click, or on Enter in the text box; a mistake is a message on the page."""

    def guarded(*values):
        try:
            return answer(*values)
        except (ValueError, OSError) as error:
            raise gradio.Error(str(error)) from error

    button.click(guarded, inputs, outputs)
    if textbox is not None:
        textbox.submit(guarded, inputs, outputs)
