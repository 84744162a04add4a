"""The command that evaluates a run's model as the run itself did, for the console and for cards."""

from collections.abc import Sequence
from typing import Any

from ..evaluation.card_results import evaluation_words
from ..evaluation.task_evaluation import EvaluationArguments


def evaluation_words_of_run(
    model: str, sources: Sequence[str], task: str, data: Any, own_folders: bool = True
) -> list[str]:
    """
    Words of `vicha-hf evaluate` whose figures are those of the run's evaluation.

    Args:
        model: folder or Hub id.
        sources: what to evaluate on.
        task: of the evaluation.
        data: the run's `data` arguments; None where it has none.
        own_folders: whether the reader has this machine's folders; on the Hub they mean nothing.
    """
    given = {
        "image_root": getattr(data, "image_root", None) if own_folders else None,
        "allow_outside_root": getattr(data, "allow_outside_root", False),
        "on_bad_record": getattr(data, "on_bad_record", "raise"),
        "use_concepts": getattr(data, "use_concepts", True),
        "splits": getattr(data, "validation_splits", None),
        "k": getattr(data, "rerank_k", EvaluationArguments.k),
    }
    unusual = {
        name: value
        for name, value in given.items()
        if value is not None and value != getattr(EvaluationArguments, name)
    }
    return evaluation_words(model, sources, task, unusual)
