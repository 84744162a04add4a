"""Records of visual question answering: VQA v2 with Visual Genome's questions, and whatever is written like them."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

from .annotation_fields import ImageFinder, read_concepts, read_identifier, read_text, require_unicode, required
from .annotations import Annotations, ReadingOptions, read_records
from .answer_limit import AnswerLimit
from .image_record import ImageRecord
from .raw_records import AnnotationError, RawRecord, RecordProblem, shorten
from .stored_images import EmbeddedImage


# What an answer counts, by the corpus that it comes from: one person wrote it in Visual Genome, ten in VQA (ALBEF,
# arXiv 2107.07651, appendix).
ANSWER_WEIGHTS = {"vqa": 1.0, "vg": 0.5}


@dataclass(frozen=True, slots=True)
class QuestionRecord(ImageRecord):
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

    def answer_weights(self) -> dict[str, float]:
        """The different answers in order of appearance, each with its share of the annotators (half of it for "vg")."""
        whole = ANSWER_WEIGHTS[self.dataset]
        return {answer: whole * count / len(self.answers) for answer, count in Counter(self.answers).items()}


@dataclass(frozen=True)
class QuestionParser:
    """
    Makes questions out of a record's fields.

    Args:
        images: finds the images.
        answer_limit: refuses answers that the decoder has no positions for.
        require_answers: whether a question without answers is bad, as in training.
    """

    images: ImageFinder
    answer_limit: AnswerLimit | None = None
    require_answers: bool = True

    def __call__(self, fields: Mapping, raw: RawRecord) -> QuestionRecord:
        """Raises `RecordProblem` for a record that cannot be used."""
        record = QuestionRecord(
            image=self.images.read(fields, raw),
            question=read_text(fields, "question"),
            question_id=read_identifier(fields, "question_id"),
            answers=_read_answers(fields, raw, is_required=self.require_answers),
            dataset=_read_dataset(fields),
            question_type=_read_kind(fields, "question_type"),
            answer_type=_read_kind(fields, "answer_type"),
            concepts=read_concepts(fields),
            where=raw.where,
        )
        if self.answer_limit is not None:
            self.answer_limit.check(record.answers)
        return record


def read_question_records(
    sources,
    image_root: str | os.PathLike | Sequence[str] | None = None,
    *,
    for_evaluation: bool = False,
    answer_limit: AnswerLimit | None = None,
    **options: Unpack[ReadingOptions],
) -> Annotations[QuestionRecord]:
    """
    Reads and validates questions.

    A record is `{"question_id": int | str, "question": str, "image": path, "answer": str | [str], "dataset": "vqa" | "vg",
    "concepts": optional [str]}`, optionally with `question_type` and `answer_type`. `answers` is read in the place of
    `answer`, and may hold objects with an `answer`, as in the official files; without `dataset` it is "vqa".

    Args:
        for_evaluation: every question may come without answers, and must have another `question_id` than the others;
            one that has none is named by its image, as in VizWiz. In training every question must have answers.
        answer_limit: refuses answers that the decoder has no positions for.
        sources, image_root, options: as in `read_image_text_records`.

    Returns:
        The records in order, with the report.

    Raises:
        AnnotationError: as `read_image_text_records`.
    """
    parse_question = QuestionParser(
        ImageFinder.from_options(options), answer_limit, require_answers=not for_evaluation
    )
    known_ids: dict[int | str, str] = {}
    unnamed: Counter[str] = Counter()

    def parse_named(fields: Mapping, raw: RawRecord) -> QuestionRecord:
        record = parse_question(fields, raw)
        if record.question_id is None:
            record = replace(record, question_id=_name_by_image(fields, raw, unnamed))
        first = known_ids.setdefault(record.question_id, raw.where)
        if first != raw.where:
            remedy = "give every question its own id: results are told apart by it"
            raise RecordProblem("question_id", "repeated", remedy, f"{record.question_id!r} is also that of {first}")
        return record

    parse = parse_named if for_evaluation else parse_question
    # A tokenizer cannot be written down as a part of a cache's key.
    own_options = {"for_evaluation": for_evaluation} if answer_limit is None else None
    return read_records(sources, image_root, QuestionRecord, parse, options, own_options)


def _name_by_image(fields: Mapping, raw: RawRecord, unnamed: Counter) -> str:
    name = os.path.basename(fields["image"]) if isinstance(fields["image"], str) else f"row {raw.index}"
    unnamed[name] += 1
    return name if unnamed[name] == 1 else f"{name}#{unnamed[name]}"


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


def _read_answers(fields: Mapping, raw: RawRecord, *, is_required: bool) -> tuple[str, ...]:
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
        require_unicode(answer, name)
        if answer.strip():
            answers.append(answer)
    if not answers:
        raise RecordProblem(name, "empty", remedy, f"{entries[0]!r} is the only one")
    if len(answers) < len(entries):
        # One annotator of ten who wrote nothing does not make the others' answers useless.
        raw.notes.append(f"field {name!r}: empty answers left out")
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
