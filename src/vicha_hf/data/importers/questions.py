"""Importers of questions about images: VQA v2 and Visual Genome."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..json_reading import read_json
from ..raw_records import AnnotationError
from .captions import visual_genome_images, visual_genome_names
from .importing import Account, ImageLocator, ImportOptions, entries_of, objects, usable_id, usable_text, usable_words


def vqa_v2(sources: Sequence[Path], options: ImportOptions, account: Account) -> Iterator[dict]:
    """
    VQA v2's files of questions, then of annotations; of test sets the questions alone. Several pairs may be given, in any
    order.
    """
    locator = ImageLocator(options.images, account)
    questions, annotations = _vqa_files(sources, account)
    for entry, kind, subset, path in questions:
        question_id = usable_id(entry.get("question_id"))
        annotation = annotations.pop(question_id, None)
        question, image_id = usable_words(entry.get("question")), entry.get("image_id")
        if question is None or not isinstance(image_id, int):
            account.leave_out("no question" if question is None else "no number of an image")
            continue
        record = {"question_id": question_id, "question": question}
        if annotation is not None:
            answered = _vqa_answers(annotation, account)
            if answered is None:
                account.leave_out("question without answers")
                continue
            record |= answered
        elif len(sources) > 1:
            account.leave_out("question without annotation")
            continue
        if not isinstance(subset, str):
            raise AnnotationError(f"{path}: field 'data_subtype': missing; it names the folder of the images")
        if (found := locator.find(_vqa_image(kind, subset, image_id))) is not None:
            yield {"image": found, "image_id": image_id, **record, "dataset": "vqa"}
    if annotations:
        account.leave_out("annotation of an unknown question", len(annotations))


def _vqa_files(sources: Sequence[Path], account: Account) -> tuple[list[tuple], dict]:
    """Every question with `data_type`, `data_subtype` and path of its file; and annotations by number of the question."""
    questions, annotations = [], {}
    for path in sources:
        content = read_json(path, dict, "VQA's questions or annotations")
        if "questions" in content:
            kind, subset = content.get("data_type"), content.get("data_subtype")
            questions += [
                (entry, kind, subset, path) for entry in objects(entries_of(content, "questions", path), account)
            ]
        else:
            for entry in objects(entries_of(content, "annotations", path), account):
                question_id = usable_id(entry.get("question_id"))
                if question_id is None:
                    account.leave_out("annotation without number of a question")
                else:
                    annotations[question_id] = entry
    if not questions:
        raise AnnotationError(f"{sources[0]}: no questions; give the file of questions, then that of annotations")
    return questions, annotations


def _vqa_answers(annotation: dict, account: Account) -> dict | None:
    """The fields of an annotation that a record has; None without an answer."""
    answers = annotation.get("answers")
    texts = [one.get("answer") for one in objects(answers if isinstance(answers, list) else [], account)]
    answers = [text for text in map(usable_text, texts) if text is not None]
    if not answers:
        return None
    kinds = {name: annotation.get(name) for name in ("question_type", "answer_type")}
    return {"answer": answers} | {name: kind for name, kind in kinds.items() if usable_text(kind)}


def _vqa_image(kind: object, subset: str, image_id: int) -> str:
    """The name of an image as its owners publish it, in the folder of its subset."""
    # The questions of the development part of the test set show images of the whole.
    subset = subset.replace("test-dev", "test")
    if isinstance(kind, str) and kind.startswith("abstract"):
        return f"{subset}/{kind}_{subset}_{image_id:012d}.png"
    return f"{subset}/COCO_{subset}_{image_id:012d}.jpg"


def visual_genome_qa(sources: Sequence[Path], options: ImportOptions, account: Account) -> Iterator[dict]:
    """
    Visual Genome's `question_answers.json`, and `image_data.json` where it is given. Answers are written as VQA's are: in
    lower case, without the final full stop.
    """
    locator = ImageLocator(options.images, account)
    addresses = visual_genome_images(sources[1]) if len(sources) > 1 else {}
    for entry in objects(read_json(sources[0], list, "Visual Genome's list of images with questions"), account):
        pairs = entry.get("qas")
        for pair in objects(pairs if isinstance(pairs, list) else [], account):
            question, answer = usable_words(pair.get("question")), usable_text(pair.get("answer"))
            image_id = usable_id(pair.get("image_id", entry.get("id")))
            answer = answer and usable_text(answer.rstrip(".").lower())
            if question is None or answer is None or image_id is None:
                missing = "question" if question is None else "answer" if answer is None else "number of an image"
                account.leave_out(f"no {missing}")
            elif (found := locator.find(*visual_genome_names(image_id, addresses))) is not None:
                yield {
                    "image": found,
                    "image_id": image_id,
                    "question_id": pair.get("qa_id"),
                    "question": question,
                    "answer": [answer],
                    "dataset": "vg",
                }
