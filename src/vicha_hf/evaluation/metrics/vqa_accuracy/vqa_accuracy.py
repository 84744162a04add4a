"""VQA accuracy as a metric of the `evaluate` library: `evaluate.load(".../metrics/vqa_accuracy")`."""

import datasets
import evaluate

from vicha_hf.evaluation.question_answering import question_metrics
from vicha_hf.evaluation.vqa import DEFAULT_RULES


_DESCRIPTION = """
Accuracy of visual question answering, in %, as the official tool counts it: an answer is compared with those of (usually)
ten people and is right in full where three of the others agree with it. With fewer than ten who all say the same, an exact
match is right.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: an answer per question.
    references: per question the answers of the annotators.
    question_types: optional, per question its kind.
    answer_types: optional, per question the kind of its answer.
    rules: year of the official tool: "2021" (default) or "2017".
Returns:
    accuracy, accuracy_question_type_NAME and accuracy_answer_type_NAME where the kinds are given, num_questions, the year
    vqa_rules, and num_questions_FORMULA for each formula that counted questions.
Examples:
    >>> metric = evaluate.load("path/to/metrics/vqa_accuracy")
    >>> metric.compute(predictions=["two"], references=[["2"] * 9 + ["3"]])
    {'accuracy': 100.0, 'num_questions': 1, 'vqa_rules': 2021, 'num_questions_official': 1}
"""


class VQAAccuracy(evaluate.Metric):
    """The maths is [`vicha_hf.evaluation.vqa.vqa_accuracy`]."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(
        self, predictions, references, question_types=None, answer_types=None, rules=DEFAULT_RULES
    ) -> dict[str, float]:
        annotations = {index: {"answers": list(answers)} for index, answers in enumerate(references)}
        for name, kinds in (("question_type", question_types), ("answer_type", answer_types)):
            if kinds is None:
                continue
            for index, kind in zip(annotations, kinds, strict=True):
                annotations[index][name] = kind
        return question_metrics(dict(enumerate(predictions)), annotations, rules)
