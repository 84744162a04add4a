"""Image-text retrieval in two stages: cosine of the projections, then the matching head on the k best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..data.loader_processes import ignore_sigterm
from ..models.retrieval_scoring import UNSCORED, Candidates
from .recall import chance_recall, recall_at_k


CUTOFFS = (1, 5, 10)


def retrieval_metrics(
    scores_i2t: Tensor,
    scores_t2i: Tensor,
    captions_of_image: Sequence[Sequence[int]],
    image_of_caption: Sequence[int],
) -> dict[str, float]:
    """Recall@1/5/10 in both directions and their means, in %, as the field reports them.

    Image to text counts an image as found when any of its captions is among the K best; text to image has one right
    image per caption. How ties are resolved: [`~vicha_hf.evaluation.recall.best_ranks`].

    Args:
        scores_i2t: `[num_images, num_captions]`, higher = better (tensor or array).
        scores_t2i: `[num_captions, num_images]`.
        captions_of_image: for each image the indices of its captions.
        image_of_caption: for each caption the index of its image.

    Returns:
        `r1_i2t, r5_i2t, r10_i2t, r_mean_i2t`, the same with `_t2i`, and `r_mean`, the mean of the two means.

    Raises:
        ValueError: shapes or ground truth that contradict each other, an image without captions, NaN scores.
    """
    scores_i2t, scores_t2i = torch.as_tensor(scores_i2t), torch.as_tensor(scores_t2i)
    expected = (len(captions_of_image), len(image_of_caption))
    if tuple(scores_i2t.shape) != expected or tuple(scores_t2i.shape) != expected[::-1]:
        raise ValueError(
            f"for {expected[0]} images and {expected[1]} captions scores_i2t must be {expected} and scores_t2i "
            f"{expected[::-1]}, but they are {tuple(scores_i2t.shape)} and {tuple(scores_t2i.shape)}"
        )
    _check_ground_truth(captions_of_image, image_of_caption)
    i2t = recall_at_k(scores_i2t, captions_of_image, CUTOFFS)
    t2i = recall_at_k(scores_t2i, [[image] for image in image_of_caption], CUTOFFS)
    return {
        **{f"{name}_i2t": value for name, value in i2t.items()},
        **{f"{name}_t2i": value for name, value in t2i.items()},
        "r_mean": (i2t["r_mean"] + t2i["r_mean"]) / 2,
    }


def _check_ground_truth(captions_of_image: Sequence[Sequence[int]], image_of_caption: Sequence[int]) -> None:
    for image, captions in enumerate(captions_of_image):
        if len(captions) == 0:
            raise ValueError(f"image {image} has no caption: leave it out of the evaluation or give it one")
        for caption in captions:
            if not 0 <= caption < len(image_of_caption) or image_of_caption[caption] != image:
                raise ValueError(
                    f"captions_of_image[{image}] names caption {caption}, but image_of_caption does not say that "
                    f"caption {caption} belongs to image {image}"
                )
    if sum(len(set(captions)) for captions in captions_of_image) != len(image_of_caption):
        raise ValueError("image_of_caption has captions that captions_of_image does not list")


@dataclass
class RetrievalScores:
    """Scores of one gallery; `num_images` images by `num_captions` captions, on the CPU.

    Args:
        similarity: `[num_images, num_captions]`, cosine of the projections (first stage).
        rerank_i2t: `[num_images, num_captions]`, re-ranked score of the k best captions of each image, -100 elsewhere.
        rerank_t2i: `[num_captions, num_images]`, re-ranked score of the k best images of each caption, -100 elsewhere.
        temperature: of the contrast.
        similarity_weight: what similarity / temperature counts in the re-ranked scores, beside the match logit.
    """

    similarity: Tensor
    rerank_i2t: Tensor
    rerank_t2i: Tensor
    temperature: float = 1.0
    similarity_weight: float = 0.0

    def reweighted(self, similarity_weight: float) -> "RetrievalScores":
        """The same gallery re-ranked with another weight of the similarity."""
        factor = (similarity_weight - self.similarity_weight) / self.temperature
        if factor == 0:
            return self
        i2t, t2i = (
            torch.where(scores == UNSCORED, scores, scores + factor * similarity)
            for scores, similarity in ((self.rerank_i2t, self.similarity), (self.rerank_t2i, self.similarity.T))
        )
        return replace(self, rerank_i2t=i2t, rerank_t2i=t2i, similarity_weight=similarity_weight)

    def metrics(self, captions_of_image: Sequence[Sequence[int]], image_of_caption: Sequence[int]) -> dict[str, float]:
        """
        [`retrieval_metrics`] of the re-ranked scores, of the match logits alone (`*_match_only`), of the first stage
        alone (`*_itc_only`), and recall by chance.
        """
        reranked = retrieval_metrics(self.rerank_i2t, self.rerank_t2i, captions_of_image, image_of_caption)
        match_only = reranked
        if self.similarity_weight:
            match = self.reweighted(0.0)
            match_only = retrieval_metrics(match.rerank_i2t, match.rerank_t2i, captions_of_image, image_of_caption)
        first_stage = retrieval_metrics(self.similarity, self.similarity.T, captions_of_image, image_of_caption)
        counts = [len(captions) for captions in captions_of_image]
        num_images, num_captions = len(captions_of_image), len(image_of_caption)
        return {
            **reranked,
            **{f"{name}_match_only": value for name, value in match_only.items()},
            **{f"{name}_itc_only": value for name, value in first_stage.items()},
            "rerank_similarity_weight": self.similarity_weight,
            **{f"chance_r{k}_i2t": chance_recall(num_captions, counts, k) for k in CUTOFFS},
            **{f"chance_r{k}_t2i": chance_recall(num_images, [1], k) for k in CUTOFFS},
            "chance_r1": chance_recall(num_images, [1], 1),
            "num_images": num_images,
            "num_captions": num_captions,
        }


# Weights of the similarity that a validation gallery chooses among; 0 is the published score.
# The largest leave little to a matching head that has learned little.
SIMILARITY_WEIGHTS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# Factors of the scores before their softmax: a larger weight makes larger scores, and larger scores alone rank no better.
SCALES = tuple(2.0 ** (exponent / 2) for exponent in range(-14, 5))


def choose_similarity_weight(
    scores: RetrievalScores, captions_of_image: Sequence[Sequence[int]], image_of_caption: Sequence[int]
) -> RetrievalScores:
    """
    The scores with the best weight of [`SIMILARITY_WEIGHTS`] on a gallery.

    Small galleries cannot tell weights apart by R@1, the mean of both directions. All weights within one standard error of
    the highest are as good. Of these, the one wins that makes the right candidates most likely: by the softmax over the k
    best, at the scale of the scores that suits each weight best. Among equal ones the smaller wins.
    """
    candidates = [scores.reweighted(weight) for weight in SIMILARITY_WEIGHTS]
    right_images = [[image] for image in image_of_caption]
    recalls = []
    for candidate in candidates:
        found = retrieval_metrics(candidate.rerank_i2t, candidate.rerank_t2i, captions_of_image, image_of_caption)
        recalls.append((found["r1_i2t"] + found["r1_t2i"]) / 200)
    best = max(recalls)
    standard_error = (best * (1 - best) / (len(captions_of_image) + len(right_images))) ** 0.5

    def likelihood(candidate: RetrievalScores) -> float:
        both = (candidate.rerank_i2t, captions_of_image), (candidate.rerank_t2i, right_images)
        return max(sum(_log_likelihood(reranked, right, scale) for reranked, right in both) for scale in SCALES)

    as_good = [
        candidate for candidate, recall in zip(candidates, recalls, strict=True) if recall >= best - standard_error
    ]
    return max(as_good, key=likelihood)


def _log_likelihood(scores: Tensor, right: Sequence[Sequence[int]], scale: float) -> float:
    """
    Mean log-probability of the right candidates, over the queries that have one among their k best.

    Args:
        scores: `[queries, candidates]`, -100 for what was not re-ranked.
        right: the right candidates of each query.
        scale: of the scores before their softmax.
    """
    is_right = torch.zeros(scores.shape, dtype=torch.bool)
    for row, columns in enumerate(right):
        is_right[row, list(columns)] = True
    log_probabilities = (scale * scores).masked_fill(scores == UNSCORED, -torch.inf).log_softmax(dim=1)
    found = log_probabilities.masked_fill(~is_right, -torch.inf).logsumexp(dim=1)
    found = found[found.isfinite()]
    return found.mean().item() if len(found) else 0.0


# States of images that are kept between the two stages, GiB; what goes beyond is encoded again.
KEPT_STATES_GIB = 8.0


def evaluate_retrieval(
    model,
    processor,
    dataset,
    k: int = 128,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    with_concepts: bool = True,
    progress: bool = True,
    num_workers: int = 0,
    accelerator=None,
    kept_states_gib: float = KEPT_STATES_GIB,
    similarity_weight: float | None = None,
) -> dict[str, float]:
    """Recall of `model` on `dataset`, both directions and both stages.

    Args:
        model: a retrieval or pretraining head (`encode_images`, `encode_texts`, `rerank`).
        processor: the model's processor.
        dataset: a [`~vicha_hf.data.datasets_retrieval.RetrievalDataset`].
        k: how many candidates of the first stage the matching head re-ranks; clipped to the size of the corpus.
            The published models use 128 for Flickr30K and 256 for COCO.
        batch_size: images, or captions, encoded at a time.
        device: where to run; by default where the accelerator, or else the model, is.
        with_concepts: False leaves the dataset's visual concepts out.
        progress: whether to show progress bars.
        num_workers: processes that load images.
        accelerator: an `accelerate.Accelerator`; each of its processes encodes and re-ranks its share of the images,
            and all return the same result. `model` is the unwrapped one.
        kept_states_gib: GiB of image states that each process keeps from the first stage for the second; the
            images beyond are loaded and encoded again.
        similarity_weight: what similarity / temperature counts beside the match logit; 0 is the published score, and the
            configuration's `rerank_similarity_weight` the default.

    Returns:
        Everything that [`retrieval_metrics`] names for the re-ranked scores, in %. The same with `_match_only` for the
        match logits alone and with `_itc_only` for the first stage. Further `rerank_similarity_weight`, `chance_r1` (of one right image among all) and `chance_r{1,5,10}_{i2t,t2i}`, all in %;
        `num_images` and `num_captions`.
    """
    scores = score_retrieval(
        model,
        processor,
        dataset,
        k=k,
        batch_size=batch_size,
        device=device,
        with_concepts=with_concepts,
        progress=progress,
        num_workers=num_workers,
        accelerator=accelerator,
        kept_states_gib=kept_states_gib,
        similarity_weight=similarity_weight,
    )
    return scores.metrics(dataset.captions_of_image, dataset.image_of_caption)


@torch.no_grad()
def score_retrieval(
    model,
    processor,
    dataset,
    k: int = 128,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    with_concepts: bool = True,
    progress: bool = True,
    num_workers: int = 0,
    accelerator=None,
    kept_states_gib: float = KEPT_STATES_GIB,
    similarity_weight: float | None = None,
) -> RetrievalScores:
    """The scores behind [`evaluate_retrieval`] (same arguments), for those who look at single queries."""
    if k < 1:
        raise ValueError(f"k={k} is not possible: the second stage needs at least one candidate per query")
    if len(dataset) == 0:
        raise ValueError("the dataset has no image: there is nothing to retrieve")
    weight = model.config.rerank_similarity_weight if similarity_weight is None else similarity_weight
    factor = model.similarity_factor(weight)
    share = _Share(len(dataset), accelerator)
    if device is None:
        device = model.device if accelerator is None else accelerator.device
    device = torch.device(device)
    bar = partial(tqdm, disable=not (progress and share.process == 0))
    was_training = model.training
    model.eval().to(device)
    try:
        images = _ShareOfImages(
            model, processor, dataset, share.indices, batch_size, device, with_concepts, num_workers, kept_states_gib
        )
        image_embeds = share.gather(images.encode(bar))
        # Every process encodes all captions: that is less than a hundredth of their fusion with the images.
        text_batches = [
            dataset.texts[start : start + batch_size] for start in range(0, len(dataset.texts), batch_size)
        ]
        encodings = [
            model.encode_texts(**processor(text=texts, padding=True, return_tensors="pt").to(device))
            for texts in bar(text_batches, desc="Encoding captions", unit="batch")
        ]
        similarity = image_embeds.float() @ torch.cat([encoding.embeds for encoding in encodings]).float().T
        candidates = Candidates.pick(similarity, k)
        texts = model.pack_texts(encodings)
        del encodings
        own = torch.tensor(share.indices, device=device)
        scores = torch.empty(len(own), len(dataset.texts), device=device)
        with bar(total=len(own), desc="Re-ranking", unit="image") as progress_bar:
            for start, encoded in images:
                rows = own[start : start + len(encoded.hidden_states)]
                wanted = candidates.of_images[rows] | candidates.of_texts[rows]
                scores[start : start + len(rows)] = model.score_candidates(encoded, texts, wanted)
                progress_bar.update(len(rows))
        reranked = candidates.separate(share.gather(scores), similarity, factor)
    finally:
        model.train(was_training)
    return RetrievalScores(
        similarity.cpu(),
        reranked.scores_i2t.cpu(),
        reranked.scores_t2i.cpu(),
        model.base_model.temperature.item(),
        weight,
    )


class _Share:
    """Images of this process: every W-th, so that shares differ by one image at most."""

    def __init__(self, num_images: int, accelerator=None):
        self.accelerator = accelerator
        self.processes = 1 if accelerator is None else accelerator.num_processes
        self.process = 0 if accelerator is None else accelerator.process_index
        self.num_images = num_images
        self.indices = range(self.process, num_images, self.processes)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows [own images, ...] of every process -> [all images, ...], in the dataset's order."""
        if self.processes == 1:
            return rows
        longest = -(-self.num_images // self.processes)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = self.accelerator.gather(padded).unflatten(0, (self.processes, longest))
        return gathered.transpose(0, 1).flatten(0, 1)[: self.num_images]


class _ShareOfImages:
    """Encodes some of the images; goes over them in batches `(first row, encoding)` for the second stage."""

    def __init__(
        self, model, processor, dataset, indices, batch_size, device, with_concepts, num_workers, kept_states_gib
    ):
        self.model, self.dataset, self.indices, self.device = model, dataset, indices, device
        self.batch_size, self.num_workers = batch_size, num_workers
        self.collate = partial(_image_arguments, processor, with_concepts=with_concepts)
        self.room = kept_states_gib * 2**30
        self.kept = []

    def encode(self, bar) -> Tensor:
        """The embeddings [n, E] of all of them; their states are kept as far as there is room."""
        embeds, full = [torch.empty(0, self.model.config.projection_dim, device=self.device)], False
        number = -(-len(self.indices) // self.batch_size)
        for encoded in bar(self._encode_from(0), desc="Encoding images", unit="batch", total=number):
            embeds.append(encoded.embeds)
            self.room -= encoded.hidden_states.nbytes
            full = full or self.room < 0
            if not full:
                self.kept.append(encoded)
        return torch.cat(embeds)

    def __iter__(self):
        start = 0
        for encoded in self.kept:
            yield start, encoded
            start += len(encoded.hidden_states)
        for encoded in self._encode_from(start):
            yield start, encoded
            start += len(encoded.hidden_states)

    def _encode_from(self, start: int):
        if start >= len(self.indices):
            return
        loader = DataLoader(
            Subset(self.dataset, self.indices[start:]),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collate,
            worker_init_fn=ignore_sigterm,
        )
        for batch in loader:
            yield self.model.encode_images(**{name: tensor.to(self.device) for name, tensor in batch.items()})


def _image_arguments(processor, items: Sequence[Mapping[str, Any]], with_concepts: bool) -> dict[str, Tensor]:
    arguments = {"pixel_values": torch.stack([item["pixel_values"] for item in items])}
    if with_concepts:
        concepts = [item["concepts"] for item in items]
        arguments.update(processor(concepts=concepts, padding=True, return_tensors="pt"))
    return arguments
