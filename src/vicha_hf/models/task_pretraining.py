"""Base of every family's pretraining head: contrast, matching and masked language modelling (ALBEF section 3)."""

from typing import ClassVar

import torch
from torch import nn

from .configuration_vision_text import VisionTextConfig
from .feature_queue import FeatureQueue
from .modeling_outputs import PreTrainingOutput
from .objective_itc import ImageTextContrast
from .objective_itm import HardNegativeSampler, ImageTextMatching, MatchingOutput
from .objective_mlm import LanguageModelingHead, MaskedLanguageModeling
from .pair_step import PairStep
from .pretrained_encoders import load_text_weights, load_vision_weights, text_config_from, vision_config_from
from .retrieval_scoring import RetrievalScoring


class PretrainingTask(RetrievalScoring):
    """
    Modules of the objectives that all families share. To be mixed in before a family's `PreTrainedModel`; the family adds
    its own objectives and writes `forward`.
    """

    head_modules: ClassVar[tuple[str, ...]] = ("itm_head", "mlm_head")

    def __init__(self, config: VisionTextConfig):
        super().__init__(config)
        text = config.text_config
        self._add_base_model()
        self.itm_head = nn.Linear(text.hidden_size, 2) if config.itm_weight > 0 else None
        self.itc = ImageTextContrast("excluded", local_columns=config.quirks.itc_local_columns)
        self.negative_sampler = HardNegativeSampler()
        self.itm = ImageTextMatching(config.cross_process_negatives, config.itm_label_smoothing)
        self.mlm_head = LanguageModelingHead(text) if config.mlm_weight > 0 else None
        word_embeddings = f"{self.base_model_prefix}.text_model.embeddings.word_embeddings.weight"
        self._tied_weights_keys = {} if self.mlm_head is None else {"mlm_head.decoder.weight": word_embeddings}
        self.mlm = MaskedLanguageModeling()

    def get_output_embeddings(self):
        return None if self.mlm_head is None else self.mlm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        self.mlm_head.decoder = new_embeddings

    @classmethod
    def from_vision_text_pretrained(cls, vision: str | None, text: str | None, **config):
        """
        A model whose encoders start from separately pretrained ones, as the papers' do (DeiT-B and BERT-base). With
        `text_pooling="mean"` similarities of texts start as a sentence encoder's, where the joint space is as wide.

        Args:
            vision: folder or Hub id of a ViT or DeiT checkpoint; its positions are interpolated to the image size. `None`
                starts the vision encoder from random weights.
            text: folder or Hub id of a BERT checkpoint; also starts the masked-language head and, where there is one,
                the concept encoder. `None` starts them from random weights.
            config: fields of the family's configuration; `vision_config` and `text_config` (dicts) override single
                fields of what the checkpoints say, e.g. `vision_config={"image_size": 256}`.

        Raises:
            ValueError: a checkpoint of another kind, or one that lacks weights of its encoder, by name.
        """
        parts = cls.config_class.sub_configs
        vision_fields, text_fields = config.pop("vision_config", {}), config.pop("text_config", {})
        vision_class, text_class = parts["vision_config"], parts["text_config"]
        vision_config = vision_fields if vision is None else vision_config_from(vision, vision_class, **vision_fields)
        text_config = text_fields if text is None else text_config_from(text, text_class, **text_fields)
        model = cls(cls.config_class(vision_config=vision_config, text_config=text_config, **config))
        base = model.base_model
        if vision is not None:
            load_vision_weights(base.vision_model, vision)
        if text is not None:
            load_text_weights(base.text_model, text, getattr(base, "concept_model", None), model.mlm_head)
            if model.config.text_pooling == "mean":
                # The joint space starts as a rotation of the sentence encoder's, which keeps its similarities.
                nn.init.orthogonal_(base.text_projection.weight)
        return model

    def _online_modules(self) -> dict[str, nn.Module]:
        online = {self.base_model_prefix: self.base_model}
        if self.mlm_head is not None:
            online["mlm_head"] = self.mlm_head
        return online

    def _new_queue(self) -> FeatureQueue:
        return FeatureQueue.of(self.config)

    def _freeze_untrained(self) -> None:
        """
        Freezes what only fusion runs, where no objective fuses; data-parallel training would wait for its gradient.
        """
        fuses = self.itm_head is not None or self.mlm_head is not None
        mim = getattr(self, "mim", None)
        if fuses or (mim is not None and mim.fuses):
            return
        for index, layer in enumerate(self.base_model.text_model.encoder.layer):
            idle = layer if index >= self.config.text_config.num_text_layers else layer.crossattention
            if idle is not None:
                idle.requires_grad_(False)

    def _weigh(self, losses: dict[str, torch.Tensor], step: PairStep, match: MatchingOutput) -> PreTrainingOutput:
        """The weighted sum of the losses by objective, and each of them as a field."""
        weights = {name: getattr(self.config, f"{name}_weight") for name in losses}
        return PreTrainingOutput(
            # The contrast counts even with weight 0: it finds the hard negatives, and every projection needs a gradient.
            loss=sum(weights[name] * loss for name, loss in losses.items()),
            **{f"{name}_loss": loss for name, loss in losses.items() if weights[name] > 0},
            itm_logits=match.logits,
            hidden_states=match.hidden_states,
            attentions=match.attentions,
            cross_attentions=match.cross_attentions,
            temperature=step.used_temperature(),
            distillation_alpha=step.alpha,
        )
