"""Visual entailment and visual reasoning: accuracy, and the running of a head that classifies."""

from collections import Counter
from collections.abc import Callable, Sequence

from torch.utils.data import Dataset

from ..data.raw_records import AnnotationError
from .sharded_prediction import predict_all
from .task_result import TaskResult


# split-set-pair-sentence, such as dev-850-0-0.
NLVR2_IDENTIFIER_PARTS = 4


def classification_accuracy(
    predictions: Sequence[int], references: Sequence[int], class_names: Sequence[str] = ()
) -> dict[str, float]:
    """
    Shares in %.

    Args:
        predictions: class indices.
        references: the right ones, in the same order.
        class_names: names of the classes; with them also the accuracy on the samples of each.

    Returns:
        `accuracy`; `majority_accuracy`, of always answering what is most frequent among the references;
        `accuracy_NAME` for each class that occurs; `num_samples`.

    Raises:
        ValueError: nothing to compare, or lists of different lengths.
    """
    if len(predictions) != len(references) or not references:
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} references: give one of each per sample, at least one."
        )
    counts = Counter(references)
    right = Counter(
        reference for prediction, reference in zip(predictions, references, strict=True) if prediction == reference
    )
    return {
        "accuracy": 100 * right.total() / len(references),
        "majority_accuracy": 100 * max(counts.values()) / len(references),
        **{
            f"accuracy_{name}": 100 * right[index] / counts[index]
            for index, name in enumerate(class_names)
            if counts[index]
        },
        "num_samples": len(references),
    }


def statement_consistency(identifiers: Sequence[int | str], right: Sequence[bool]) -> dict[str, float]:
    """
    Consistency of NLVR2 (Suhr et al., arXiv 1811.00491, section 6): share of the sentences, in %, that are judged rightly
    with every pair of images which they were written down for.

    Args:
        identifiers: of the statements, `split-set-pair-sentence`. Statements of one set and sentence belong together; one
            with another kind of identifier stands alone.
        right: for each statement whether it was judged rightly.

    Returns:
        `consistency` and `num_sentences`.
    """
    sentences: dict[object, bool] = {}
    for identifier, is_right in zip(identifiers, right, strict=True):
        parts = str(identifier).split("-")
        sentence = (parts[0], parts[1], parts[3]) if len(parts) == NLVR2_IDENTIFIER_PARTS else identifier
        sentences[sentence] = sentences.get(sentence, True) and is_right
    return {"consistency": 100 * sum(sentences.values()) / len(sentences), "num_sentences": len(sentences)}


def evaluate_classification(
    model,
    dataset: Dataset,
    collator: Callable,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = True,
) -> TaskResult:
    """
    Entailment or reasoning on every record.

    Args:
        model: a head with `CLASSES` whose output has `logits` [B, classes].
        dataset: an [`EntailmentDataset`] or [`ReasoningDataset`]; `annotations` are its records.
        collator: the task's.
        batch_size, num_workers, progress: see [`predict_all`].

    Returns:
        Metrics of [`classification_accuracy`], empty where no record has a label, and of [`statement_consistency`] where
        every record has an identifier. Predictions: for each record what it says, its `identifier` where it has one, the
        predicted `label` and its `probability`, and the right one as `reference`.

    Raises:
        AnnotationError: some records have a label and some have none, or two have one identifier.
    """
    records, classes = list(dataset.annotations), model.CLASSES
    references = [record.label for record in records]
    unknown = [record for record in records if record.label is None]
    if 0 < len(unknown) < len(records):
        raise AnnotationError(
            f"{unknown[0].where}: field 'label': missing, as in {len(unknown)} of {len(records)} records; give all of them "
            "one to have the accuracy, or none to have predictions alone"
        )

    identifiers = [getattr(record, "identifier", None) for record in records]
    _require_own_identifiers(records, identifiers)

    def predict(batch, indices):
        batch.pop("labels", None)
        best = model(**batch).logits.float().softmax(dim=-1).max(dim=-1)
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    predicted = predict_all(
        dataset,
        collator,
        predict,
        device=model.device,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
    )
    metrics = {}
    if not unknown:
        metrics = classification_accuracy([label for label, _ in predicted], references, classes)
        if None not in identifiers:
            right = [label == reference for (label, _), reference in zip(predicted, references, strict=True)]
            metrics |= statement_consistency(identifiers, right)
    predictions = [
        {
            "record": record.where,
            **({} if identifier is None else {"identifier": identifier}),
            "sentence": record.sentence,
            "label": classes[label],
            "probability": probability,
            "reference": None if record.label is None else classes[record.label],
        }
        for record, identifier, (label, probability) in zip(records, identifiers, predicted, strict=True)
    ]
    return TaskResult(metrics, predictions)


def _require_own_identifiers(records: Sequence, identifiers: Sequence[int | str | None]) -> None:
    first_of: dict[int | str, str] = {}
    for record, identifier in zip(records, identifiers, strict=True):
        if identifier is not None and first_of.setdefault(identifier, record.where) != record.where:
            raise AnnotationError(
                f"{record.where}: field 'identifier': {identifier!r} is also that of {first_of[identifier]}; give every "
                "statement its own: predictions are told apart by it"
            )
