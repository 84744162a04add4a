"""The two objectives that pretraining, retrieval and grounding train with (ALBEF sections 3.2 and 3.3)."""

import torch

from .feature_queue import FeatureQueue
from .retrieval_scoring import RetrievalScoring


class ContrastAndMatch(RetrievalScoring):
    """
    Contrast against teacher and queue, then matching with the negatives that the contrast finds hard. To be mixed in
    before a family's `PreTrainedModel`; the head owns `itc`, `negative_sampler`, `itm` and `itm_head`.
    """

    def _new_queue(self) -> FeatureQueue:
        config = self.config
        return FeatureQueue(config.queue_size, config.projection_dim, config.queue_warmup_batches)

    def _contrast(self, images, texts, teacher_images, teacher_texts, alpha, image_ids):
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
        )
        if self.training and queue is not None:
            queue.enqueue(teacher_images.embeds, teacher_texts.embeds, image_ids)
        return contrast

    def _match(self, images, key_values, texts, contrast, image_ids, negative_image_indices, negative_text_indices):
        """Fuses the pairs, each text with a hard negative image and each image with a hard negative text."""
        own = slice(contrast.batch_start, contrast.batch_start + len(images.embeds))
        negatives = self.negative_sampler(
            contrast.sim_i2t[:, own],
            contrast.sim_t2i[:, own],
            image_ids,
            negative_image_indices,
            negative_text_indices,
        )
        pair = torch.arange(len(images.embeds), device=images.embeds.device)
        image_index = torch.cat([pair, negatives.image_indices, pair])
        text_index = torch.cat([pair, pair, negatives.text_indices])
        fused = self.base_model.text_model(
            **texts.for_fusion(text_index),
            encoder_key_values=key_values,
            encoder_attention_mask=images.attention_mask,
            encoder_index=image_index,
            # The matching head reads [CLS] alone.
            output_index=pair.new_zeros(1, 1),
        ).last_hidden_state
        return self.itm(self.itm_head(fused[:, 0]), negatives)

    @torch.no_grad()
    def _teacher_encodings(self, pixel_values, concept_input_ids, concept_attention_mask, input_ids, attention_mask):
        teacher = self._teacher()[self.base_model_prefix]
        images = teacher.encode_images(pixel_values, concept_input_ids, concept_attention_mask)
        return images, teacher.encode_texts(input_ids, attention_mask)
