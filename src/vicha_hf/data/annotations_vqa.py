"""Records of visual question answering: VQA v2 with Visual Genome's questions, and whatever is written like them."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from .annotation_fields import ImageFinder, read_concepts, read_text, required
from .annotation_sources import AnnotationError, RawRecord, RecordProblem, shorten
from .annotations import Annotations, read_records
from .image_files import EmbeddedImage, open_image


# What an answer counts, by the corpus that it comes from: one person wrote it in Visual Genome, ten in VQA (ALBEF,
# arXiv 2107.07651, appendix).
ANSWER_WEIGHTS = {"vqa": 1.0, "vg": 0.5}


@dataclass(frozen=True, slots=True)
class QuestionRecord:
    """
    A question about an image.

    Attributes:
        image: path of the image, or an image inside a dataset.
        question: as written.
        question_id: a number or text; None where the source gives none.
        answers: the annotators' answers as written, equal ones repeated; may be empty in evaluation.
        dataset: "vqa" or "vg" (Visual Genome, whose answers count half).
        question_type, answer_type: kinds that accuracy is reported for, if any.
        concepts: the visual concepts of the image.
        where: file and record, for messages.
    """

    image: str | EmbeddedImage
    question: str
    question_id: int | str | None
    answers: tuple[str, ...]
    dataset: str
    question_type: str | None
    answer_type: str | None
    concepts: tuple[str, ...]
    where: str

    def load_image(self) -> Image.Image:
        """The image as upright RGB. Raises `ImageReadError`."""
        return open_image(self.image, self.where)

    def answer_weights(self) -> dict[str, float]:
        """The different answers in order of appearance, each with its share of the annotators (half of it for "vg")."""
        whole = ANSWER_WEIGHTS[self.dataset]
        return {answer: whole * count / len(self.answers) for answer, count in Counter(self.answers).items()}


def read_question_records(
    sources,
    image_root: str | os.PathLike | None = None,
    *,
    for_evaluation: bool = False,
    on_bad_record: Literal["raise", "skip"] = "raise",
    check_images: bool = True,
) -> Annotations[QuestionRecord]:
    """
    Reads and validates questions.

    A record is `{"question_id": int | str, "question": str, "image": path, "answer": str | [str], "dataset": "vqa" | "vg",
    "concepts": optional [str]}`, optionally with `question_type` and `answer_type`. `answers` is read in the place of
    `answer`, and may hold objects with an `answer`, as in the official files; without `dataset` it is "vqa".

    Args:
        for_evaluation: every question must have its own `question_id`, and may come without answers; in training every
            question must have answers, and may come without `question_id`.
        sources, image_root, on_bad_record, check_images: as in `read_image_text_records`.

    Returns:
        The records in order, with the report.

    Raises:
        AnnotationError: as `read_image_text_records`.
    """
    images = ImageFinder(image_root, check_images)
    known_ids: dict[int | str, str] = {}

    def parse(fields: Mapping, raw: RawRecord) -> QuestionRecord:
        record = QuestionRecord(
            image=images.read(fields, raw.default_root),
            question=read_text(fields, "question"),
            question_id=_read_question_id(fields, is_required=for_evaluation),
            answers=_read_answers(fields, is_required=not for_evaluation),
            dataset=_read_dataset(fields),
            question_type=_read_kind(fields, "question_type"),
            answer_type=_read_kind(fields, "answer_type"),
            concepts=read_concepts(fields),
            where=raw.where,
        )
        if for_evaluation:
            first = known_ids.setdefault(record.question_id, raw.where)
            if first != raw.where:
                remedy = "give every question its own id: results are told apart by it"
                raise RecordProblem(
                    "question_id", "repeated", remedy, f"{record.question_id!r} is also that of {first}"
                )
        return record

    return read_records(sources, parse, on_bad_record=on_bad_record)


def vqa_references(records: Iterable[QuestionRecord]) -> dict[int | str, dict]:
    """
    The annotators' answers by question id, as `evaluation.vqa.vqa_accuracy` takes them.

    Raises:
        AnnotationError: a question without answers, as in the published test sets: their accuracy cannot be computed.
    """
    references = {}
    for record in records:
        if not record.answers:
            raise AnnotationError(
                f"{record.where}: field 'answer': missing; add the annotators' answers, or only write predictions"
            )
        kinds = {"question_type": record.question_type, "answer_type": record.answer_type}
        references[record.question_id] = {
            "answers": list(record.answers),
            **{kind: value for kind, value in kinds.items() if value is not None},
        }
    return references


def _read_question_id(fields: Mapping, *, is_required: bool) -> int | str | None:
    remedy = "give a number or a text"
    value = required(fields, "question_id", remedy) if is_required else fields.get("question_id")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | str)):
        raise RecordProblem("question_id", "wrong type", remedy, f"got {shorten(value)}")
    return value


def _read_answers(fields: Mapping, *, is_required: bool) -> tuple[str, ...]:
    name = "answers" if fields.get("answer") is None and fields.get("answers") is not None else "answer"
    remedy = "write an answer, or a list with the answer of each annotator"
    if not is_required and fields.get(name) is None:
        return ()
    value = required(fields, name, remedy)
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list | tuple):
        raise RecordProblem(name, "wrong type", remedy, f"got {shorten(value)}")
    if not entries:
        raise RecordProblem(name, "empty", remedy, "an empty list")
    answers = []
    for entry in entries:
        answer = entry.get("answer") if isinstance(entry, Mapping) else entry
        if not isinstance(answer, str):
            raise RecordProblem(name, "wrong type", remedy, f"got {shorten(entry)}")
        if not answer.strip():
            raise RecordProblem(name, "empty", remedy, f"{answer!r} among the answers")
        answers.append(answer)
    return tuple(answers)


def _read_dataset(fields: Mapping) -> str:
    value = fields.get("dataset")
    if value is None:
        return "vqa"
    if value not in ANSWER_WEIGHTS:
        remedy = 'write "vqa", or "vg" for Visual Genome, whose answers count half'
        raise RecordProblem("dataset", "unknown corpus", remedy, f"got {shorten(value)}")
    return value


def _read_kind(fields: Mapping, name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise RecordProblem(name, "wrong type", "write a word, or leave the field out", f"got {shorten(value)}")
    return value
