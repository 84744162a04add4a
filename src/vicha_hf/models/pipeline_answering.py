"""Pipelines that answer: questions about an image, whether it entails a sentence, whether a statement about two is true."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from transformers.utils import cached_file

from .pipeline_base import VisionTextPipeline


# Stands beside the weights of a model for question answering: what it was trained to answer.
ANSWER_LIST_FILE = "answer_list.json"


class VisualQuestionAnsweringPipeline(VisionTextPipeline):
    """
    Answers questions about images.

    ```python
    >>> ask = pipeline("visual-question-answering", model=folder)
    >>> ask("photo.jpg", "what colour is the dog?")
    [{'score': 0.71, 'answer': 'brown'}, {'score': 0.12, 'answer': 'black'}, ...]
    ```

    Args:
        inputs: an image, or `{"image": ..., "question": ..., "concepts": optional [str]}`, or many of either.
        question: about the image.
        top_k: how many answers to return, likeliest first (5).
        answers: the answers to choose from; by default the list beside the model. Without a list the model writes its
            own.
        generate: have the model write its own answer, whatever list there is.
        candidates: answers of the list that are ranked by their whole text (128).
        exact: rank the whole list instead of the candidates with the likeliest first words.
        concepts: the visual concepts of the image, where it is only one; "auto" finds those of every image.

    Returns:
        `[{"score": probability, "answer": text}]`, likeliest first. Among a list, the probabilities are those of the
        candidates; of a written answer, that of its words.
    """

    required = "rank_answers"
    text_field = "question"
    text_aliases = ("questions", "text")

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._prepared: tuple[tuple[str, ...], object] | None = None

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        answers: Sequence[str] | None = None,
        generate: bool | None = None,
        candidates: int | None = None,
        exact: bool | None = None,
        concepts: Sequence | None = None,
    ):
        for name, value in (("top_k", top_k), ("candidates", candidates)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}={value}` must be at least 1.")
        if answers is not None and (isinstance(answers, str) or not answers):
            raise ValueError("`answers` must be a list of at least one answer.")
        given = {"answers": answers, "generate": generate, "candidates": candidates, "exact": exact, "top_k": top_k}
        forward = {name: value for name, value in given.items() if value is not None}
        return {} if concepts is None else {"concepts": concepts}, forward, {}

    def preprocess(self, queries: Sequence[Mapping], concepts: Sequence | None = None) -> dict:
        images = [self._field(query, "image", ("images",)) for query in queries]
        given = [query.get("concepts", concepts) for query in queries]
        return self._encode_images(images, given) | self._encode_texts([self._text(query) for query in queries])

    def _forward(
        self,
        inputs: dict,
        answers: Sequence[str] | None = None,
        generate: bool = False,
        candidates: int = 128,
        exact: bool = False,
        top_k: int = 5,
    ) -> dict:
        if answers is None and not generate:
            answers = self.answer_list
        if generate or answers is None:
            return self._written(inputs)
        ranking = self.model.rank_answers(
            **inputs, answers=self._tree(tuple(answers)), top_k=top_k if exact else max(top_k, candidates), exact=exact
        )
        return {
            "answers": [[answers[index] for index in row] for row in ranking.answer_indices[:, :top_k].tolist()],
            "scores": ranking.probabilities[:, :top_k],
        }

    def postprocess(self, outputs: dict) -> list[list[dict]]:
        return [
            [{"score": score, "answer": answer} for score, answer in zip(scores, answers, strict=True)]
            for scores, answers in zip(outputs["scores"].tolist(), outputs["answers"], strict=True)
        ]

    @cached_property
    def answer_list(self) -> list[str] | None:
        """The answers beside the model; None where there are none."""
        folder = self.model.name_or_path
        path = folder and cached_file(folder, ANSWER_LIST_FILE, _raise_exceptions_for_missing_entries=False)
        if not path:
            return None
        try:
            answers = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read ({error}); write a JSON list of answers.") from error
        if not isinstance(answers, list) or not answers or any(not isinstance(answer, str) for answer in answers):
            raise ValueError(f"{path} is no list of answers; write a JSON list of texts, or ask for written answers.")
        return answers

    def save_pretrained(self, save_directory, **options) -> None:
        """Saves the model, its processor, and the answers beside it."""
        super().save_pretrained(save_directory, **options)
        if self.answer_list is not None:
            text = json.dumps(self.answer_list, ensure_ascii=False, indent=1) + "\n"
            (Path(save_directory) / ANSWER_LIST_FILE).write_text(text, encoding="utf-8")

    def _tree(self, answers: tuple[str, ...]):
        """The list prepared for many calls; the one that was used last is kept."""
        if self._prepared is None or self._prepared[0] != answers:
            encoded = self.processor.tokenize_answers(answers)
            self._prepared = (answers, self.model.answer_tree(encoded))
        return self._prepared[1]

    def _written(self, inputs: dict) -> dict:
        written = self.model.generate(**inputs)
        answers = self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)
        rows = torch.arange(len(answers))
        encoded = self.processor.tokenize_answers([answer or self.processor.tokenizer.unk_token for answer in answers])
        ranking = self.model.rank_answers(**inputs, answers=encoded, top_k=None)
        of_answer = ranking.scores.cpu().gather(1, ranking.answer_indices.cpu().argsort(dim=1))
        return {"answers": [[answer] for answer in answers], "scores": of_answer[rows, rows, None].exp()}


class VisualEntailmentPipeline(VisionTextPipeline):
    """
    Says how an image stands to a sentence.

    ```python
    >>> judge = pipeline("visual-entailment", model=folder)
    >>> judge("photo.jpg", "two dogs play in the snow")
    [{'score': 0.93, 'label': 'entailment'}, {'score': 0.05, 'label': 'neutral'}, ...]
    ```

    Args:
        inputs: an image, or `{"image": ..., "text": ..., "concepts": optional [str]}`, or many of either.
        text: the sentence.
        top_k: how many classes to return, likeliest first; all by default.
        concepts: the visual concepts of the image, where it is only one; "auto" finds those of every image.

    Returns:
        `[{"score": probability, "label": class}]`, likeliest first.
    """

    required = "entailment_classifier"
    text_aliases = ("sentence", "texts", "sentences")

    def _sanitize_parameters(self, top_k: int | None = None, concepts: Sequence | None = None):
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k={top_k}` must be at least 1.")
        preprocess = {} if concepts is None else {"concepts": concepts}
        return preprocess, {}, {} if top_k is None else {"top_k": top_k}

    def preprocess(self, queries: Sequence[Mapping], concepts: Sequence | None = None) -> dict:
        images = [self._field(query, "image", ("images",)) for query in queries]
        given = [query.get("concepts", concepts) for query in queries]
        return self._encode_images(images, given) | self._encode_texts([self._text(query) for query in queries])

    def _forward(self, inputs: dict) -> dict[str, torch.Tensor]:
        return {"probabilities": self.model(**inputs).logits.float().softmax(dim=-1)}

    def postprocess(self, outputs: dict[str, torch.Tensor], top_k: int | None = None) -> list[list[dict]]:
        ranked = outputs["probabilities"].sort(dim=-1, descending=True, stable=True)
        return [
            [
                {"score": score, "label": self.model.CLASSES[index]}
                for score, index in list(zip(scores, indices, strict=True))[:top_k]
            ]
            for scores, indices in zip(ranked.values.tolist(), ranked.indices.tolist(), strict=True)
        ]


class VisualReasoningPipeline(VisualEntailmentPipeline):
    """
    Says whether a statement about two images is true.

    ```python
    >>> judge = pipeline("visual-reasoning", model=folder)
    >>> judge(["left.jpg", "right.jpg"], "both images show a dog")
    [{'score': 0.88, 'label': 'True'}, {'score': 0.12, 'label': 'False'}]
    ```

    Args:
        inputs: a pair of images, or `{"images": [left, right], "text": ..., "concepts": optional [[str], [str]]}`, or
            many of either.
        text: the statement.
        top_k, concepts: as in [`VisualEntailmentPipeline`].
    """

    required = "reasoning_classifier"
    reads_pairs = True

    def preprocess(self, queries: Sequence[Mapping], concepts: Sequence | None = None) -> dict:
        pairs = [self._field(query, "image", ("images",)) for query in queries]
        for pair in pairs:
            if not self._is_image(pair):
                raise ValueError(f"{type(self).__name__}: a query needs two images, a left and a right one.")
        given = [query.get("concepts", concepts) or (None, None) for query in queries]
        given = [("auto", "auto") if entry == "auto" else entry for entry in given]
        for entry in given:
            if len(entry) != 2 or any(isinstance(side, str) and side != "auto" for side in entry):
                raise ValueError(f"{type(self).__name__}: give `concepts` for each of the two images, [[...], [...]].")
        encoded = self._encode_images(
            [image for pair in pairs for image in pair], [side for entry in given for side in entry]
        )
        # Row 2b is the left image of query b, row 2b + 1 the right one.
        by_pair = {name: tensor.unflatten(0, (len(queries), 2)) for name, tensor in encoded.items()}
        # Statements are judged whole, as in training.
        return by_pair | self._encode_texts([self._text(query) for query in queries], truncation=False)


__all__ = [
    "ANSWER_LIST_FILE",
    "VisualEntailmentPipeline",
    "VisualQuestionAnsweringPipeline",
    "VisualReasoningPipeline",
]
