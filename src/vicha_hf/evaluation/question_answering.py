"""Visual question answering: asking the model every question and counting as the official tool does."""

from collections import Counter
from collections.abc import Mapping, Sequence

from torch.utils.data import Dataset

from ..data.collators import QuestionAnsweringCollator
from .sharded_prediction import predict_all
from .task_result import TaskResult
from .vqa import DEFAULT_RULES, vqa_accuracy


def question_metrics(
    answers: Mapping, references: Mapping[object, Mapping], rules: str = DEFAULT_RULES
) -> dict[str, float]:
    """
    [`vqa_accuracy`] as flat metrics, in %.

    Args:
        answers: question id -> answer.
        references: question id -> `answers`, and `question_type` and `answer_type` where they are known.
        rules: year of the official tool, as in [`answer_accuracy`].

    Returns:
        `accuracy`, `accuracy_question_type_NAME`, `accuracy_answer_type_NAME` and `num_questions`; how they were
        counted: the year `vqa_rules`, and `num_questions_FORMULA` for each formula that was used.
    """
    result = vqa_accuracy(answers, references, rules)
    return {
        "accuracy": result["overall"],
        **{
            f"accuracy_{kind}_{name}": value
            for kind in ("question_type", "answer_type")
            for name, value in sorted(result[f"per_{kind}"].items())
        },
        "num_questions": len(references),
        "vqa_rules": int(rules),
        **{
            f"num_questions_{name}": result["questions_by_formula"][name]
            for name in sorted(result["questions_by_formula"])
        },
    }


def majority_accuracy(references: Mapping[object, Mapping], rules: str = DEFAULT_RULES) -> float:
    """Accuracy, in %, of giving every question the answer that annotators gave most often."""
    counts = Counter(answer for reference in references.values() for answer in reference["answers"])
    most_frequent = max(counts, key=lambda answer: (counts[answer], answer))
    return vqa_accuracy(dict.fromkeys(references, most_frequent), references, rules)["overall"]


def evaluate_question_answering(
    model,
    processor,
    dataset: Dataset,
    answer_list: Sequence[str] | None,
    references: Mapping | None,
    *,
    k: int = 128,
    exact: bool = False,
    rules: str = DEFAULT_RULES,
    batch_size: int = 32,
    with_concepts: bool = True,
    num_workers: int = 0,
    progress: bool = True,
) -> TaskResult:
    """
    Answers every question.

    Args:
        model: a head for question answering.
        processor: the model's.
        dataset: a [`QuestionAnsweringDataset`] of records with ids.
        answer_list: what can be answered, ranked by [`rank_answers`]; None has the model write its answers.
        references: from `vqa_references`; None where the answers are not known.
        k: candidates of the list that are ranked by their whole text (published: 128).
        exact: take the likeliest answer of the whole list, whatever its first word; `k` is then not used.
        rules: year of the official tool, as in [`answer_accuracy`].
        batch_size, num_workers, progress: see [`predict_all`].
        with_concepts: False leaves the visual concepts out.

    Returns:
        [`question_metrics`] and [`majority_accuracy`], empty without references; predictions as the VQA server wants them,
        `[{"question_id": ..., "answer": ...}]`.
    """
    tree = None
    if answer_list is not None:
        tree = model.answer_tree(processor.tokenize_answers(list(answer_list)))

    def predict(batch, indices):
        if tree is None:
            return processor.tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True)
        ranking = model.rank_answers(**batch, answers=tree, top_k=1 if exact else k, exact=exact)
        return [answer_list[index] for index in ranking.answer_indices[:, 0].tolist()]

    answers = predict_all(
        dataset,
        QuestionAnsweringCollator(processor, with_concepts=with_concepts, with_answers=False),
        predict,
        device=model.device,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
        description="Answering",
    )
    ids = [record.question_id for record in dataset.annotations]
    metrics = {}
    if references is not None:
        metrics = question_metrics(dict(zip(ids, answers, strict=True)), references, rules)
        metrics["majority_accuracy"] = majority_accuracy(references, rules)
    predictions = [{"question_id": key, "answer": answer} for key, answer in zip(ids, answers, strict=True)]
    return TaskResult(metrics, predictions)
