"""The two objectives that pretraining, retrieval and grounding train with (ALBEF sections 3.2 and 3.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .contrast_parts import CachedLoss, ContrastPart, RandomState
from .feature_queue import FeatureQueue
from .objective_itm import HardNegatives
from .process_group import RowFetcher, gather, longest_of_all, require_equal_rows, world_size
from .retrieval_scoring import RetrievalScoring


class ContrastAndMatch(RetrievalScoring):
    """
    Contrast against teacher and queue, then matching with the negatives that the contrast finds hard. To be mixed in
    before a family's `PreTrainedModel`; the head owns `itc`, `negative_sampler`, `itm` and `itm_head`.
    """

    def _new_queue(self) -> FeatureQueue:
        config = self.config
        return FeatureQueue(config.queue_size, config.projection_dim, config.queue_warmup_batches)

    @torch.no_grad()
    def cache_contrast(self, batches: Sequence[Mapping[str, Any]]) -> list[ContrastPart]:
        """
        Prepares an optimiser step whose batch runs through `forward` in parts, each of which is then contrasted with
        all of them. Give `forward` every part with its own `contrast_part`, in this order, and average the losses.
        Loss and gradients of the contrasts are those of the whole batch; the other objectives, hard negatives
        included, see their
        part alone. The teacher does not move in such a step: call `update_teacher()` before.

        Args:
            batches: arguments of `forward` for each part, equally many rows in all of them.

        Raises:
            ValueError: parts of different sizes, or a model that draws its negatives from other processes.
        """
        rows = {len(batch["pixel_values"]) for batch in batches}
        if len(rows) != 1:
            raise ValueError(
                f"the parts of a batch have {sorted(rows)} rows: their mean is the whole's only if all are equal."
            )
        if self.config.cross_process_negatives:
            raise ValueError(
                "`cross_process_negatives=True` is not possible with a batch in parts: negatives come from the own part."
            )
        self._begin_training_step(update_teacher=False)
        if self.parameter_bounds():
            self.base_model.clamp_temperature()
        teacher = [self._teacher_encodings(**encoded_inputs(batch)) for batch in batches]
        image_embeds, text_embeds = (torch.cat([pair[side].embeds for pair in teacher]) for side in (0, 1))
        ids = [batch.get("image_ids") for batch in batches]
        image_ids = None if ids[0] is None else torch.cat(ids)
        require_equal_rows(image_embeds)
        columns = self.itc.columns(image_embeds, text_embeds, image_ids)
        levels = self._cache_levels(batches, image_ids)
        (size,) = rows
        return [
            ContrastPart(
                teacher_images=images,
                teacher_texts=texts,
                columns=replace(columns, start=columns.start + number * size),
                enqueued=(image_embeds, text_embeds, image_ids) if number == len(batches) - 1 else None,
                levels=cached,
                random_state=random_state,
            )
            for number, ((images, texts), (cached, random_state)) in enumerate(zip(teacher, levels, strict=True))
        ]

    def _cache_levels(self, batches, image_ids) -> list[tuple[CachedLoss | None, RandomState | None]]:
        """
        Caches, for each part, a contrast whose columns have a gradient and the random state of its encoding; none
        here.
        """
        return [(None, None)] * len(batches)

    def _contrast(self, images, texts, teacher_images, teacher_texts, alpha, image_ids, part=None):
        require_equal_rows(images.embeds)
        queue = None if self.training_state is None else self.training_state.queue
        contrast = self.itc(
            images.embeds,
            texts.embeds,
            teacher_images.embeds,
            teacher_texts.embeds,
            self.base_model.temperature,
            alpha,
            queue=queue,
            image_ids=image_ids,
            columns=None if part is None else part.columns,
        )
        if self.training and queue is not None:
            enqueued = (teacher_images.embeds, teacher_texts.embeds, image_ids) if part is None else part.enqueued
            if enqueued is not None:
                queue.enqueue(*enqueued)
        return contrast

    def _match(self, images, key_values, texts, contrast, image_ids, negative_image_indices, negative_text_indices):
        """Fuses the pairs, each text with a hard negative image and each image with a hard negative text."""
        batch_size = len(images.embeds)
        first = contrast.batch_start
        # Rows of the own batch, or of the batch of all processes.
        everywhere = self.config.cross_process_negatives and world_size() > 1
        candidates = slice(0, world_size() * batch_size) if everywhere else slice(first, first + batch_size)
        negatives = self.negative_sampler(
            contrast.sim_i2t[:, candidates],
            contrast.sim_t2i[:, candidates],
            image_ids,
            negative_image_indices,
            negative_text_indices,
            own_start=first - candidates.start,
            candidate_ids=gather(image_ids) if everywhere and image_ids is not None else None,
        )
        image_mask, texts = images.attention_mask, texts.for_fusion()
        image_index, text_index = negatives.image_indices, negatives.text_indices
        if everywhere:
            key_values, image_mask, texts = self._with_negatives(images, key_values, texts, negatives)
            # Behind the own images and texts come the fetched ones, one for each row.
            image_index = text_index = torch.arange(batch_size, 2 * batch_size, device=images.embeds.device)
        pair = torch.arange(batch_size, device=images.embeds.device)
        text_index = torch.cat([pair, pair, text_index])
        fused = self.base_model.text_model(
            **{name: _rows(value, text_index) for name, value in texts.items()},
            encoder_key_values=key_values,
            encoder_attention_mask=image_mask,
            encoder_index=torch.cat([pair, image_index, pair]),
            # The matching head reads [CLS] alone.
            output_index=pair.new_zeros(1, 1),
        ).last_hidden_state
        return self.itm(self.itm_head(fused[:, 0]), negatives)

    def _with_negatives(self, images, key_values, texts: dict, negatives: HardNegatives):
        """
        The own images' keys and values, their mask and the own texts [B, ...], each followed by the B negatives, which
        come from the processes that have them. Images travel as tokens: keys and values of all layers would be more.
        """
        batch_size, device = len(images.embeds), images.embeds.device
        tokens, text_mask = images.hidden_states, texts["attention_mask"]
        text_name = "input_ids" if "input_ids" in texts else "inputs_embeds"
        # Each process pads to its own longest row.
        num_tokens, num_words = longest_of_all([tokens.shape[1], texts[text_name].shape[1]], device)
        mask = images.attention_mask
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=device)
        mask = _lengthened(mask, num_tokens)
        fetch = RowFetcher(negatives.image_indices, batch_size)
        negative_key_values = self.base_model.text_model.project_keys_values(fetch(_lengthened(tokens, num_tokens)))
        key_values = [
            None
            if own is None
            else tuple(
                torch.cat([_lengthened(mine, num_tokens, dim=2), theirs])
                for mine, theirs in zip(own, others, strict=True)
            )
            for own, others in zip(key_values, negative_key_values, strict=True)
        ]
        image_mask = torch.cat([mask, fetch(mask)])
        fetch = RowFetcher(negatives.text_indices, batch_size)
        words, text_mask = _lengthened(texts[text_name], num_words), _lengthened(text_mask, num_words)
        texts = texts | {
            text_name: torch.cat([words, fetch(words)]),
            "attention_mask": torch.cat([text_mask, fetch(text_mask)]),
        }
        return key_values, image_mask, texts

    def _freeze_untrained(self) -> None:
        """
        Freezes what only fusion runs, where no objective fuses; data-parallel training would wait for its gradient.
        """
        objectives = (getattr(self, name, None) for name in ("itm_head", "mlm_head"))
        mim = getattr(self, "mim", None)
        if any(objective is not None for objective in objectives) or (mim is not None and mim.fuses):
            return
        for index, layer in enumerate(self.base_model.text_model.encoder.layer):
            idle = layer if index >= self.config.text_config.num_text_layers else layer.crossattention
            if idle is not None:
                idle.requires_grad_(False)

    @torch.no_grad()
    def _teacher_encodings(
        self, pixel_values, input_ids, attention_mask, concept_input_ids=None, concept_attention_mask=None
    ):
        teacher = self._teacher()[self.base_model_prefix]
        images = teacher.encode_images(pixel_values, concept_input_ids, concept_attention_mask)
        return images, teacher.encode_texts(input_ids, attention_mask)


def encoded_inputs(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Picks what the encoders read of `forward`'s arguments."""
    mask = batch.get("attention_mask")
    inputs = {
        "pixel_values": batch["pixel_values"],
        "input_ids": batch["input_ids"],
        "attention_mask": torch.ones_like(batch["input_ids"]) if mask is None else mask,
    }
    return inputs | {name: batch.get(name) for name in ("concept_input_ids", "concept_attention_mask")}


def _rows(value, index: torch.Tensor):
    return value.index_select(0, index) if isinstance(value, torch.Tensor) else value


def _lengthened(tensor: torch.Tensor, length: int, dim: int = 1) -> torch.Tensor:
    """Zeros behind what stands along `dim`, up to `length`."""
    missing = length - tensor.shape[dim]
    if missing == 0:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(*tensor.shape[:dim], missing, *tensor.shape[dim + 1 :])], dim=dim)
