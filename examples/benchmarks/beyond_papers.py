"""The options that the papers do not have, as `training_options.py` measures them."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from vicha_hf.training.adapters import LoraArguments, TrainedPartsArguments, choose_trained_parts


@dataclass(frozen=True)
class Option:
    """
    One way in which a step differs from the papers'.

    Args:
        title: what a table calls it.
        fields: of the configuration.
        freeze: parts of the model; those that a family does not have are left out.
        lora_rank: of adapters in the encoders; 0 for none.
        optimizer: as the training argument of this name.
        parts: forward passes that the batch is cut into.
        caching: whether these contrast with each other.
        needs: a library that is not installed with the package.
    """

    title: str
    fields: dict[str, Any] = field(default_factory=dict)
    freeze: tuple[str, ...] = ()
    lora_rank: int = 0
    optimizer: str = "adamw"
    parts: int = 1
    caching: bool = False
    needs: str | None = None

    @property
    def is_available(self) -> bool:
        return self.needs is None or find_spec(self.needs) is not None

    def choose_trained_parts(self, model) -> None:
        """Before the model gets its teacher."""
        freeze = [name for name in self.freeze if getattr(model.base_model, name, None) is not None]
        lora = LoraArguments(r=self.lora_rank) if self.lora_rank else None
        choose_trained_parts(model, TrainedPartsArguments(freeze=freeze, lora=lora))


NONE = "none"
OPTIONS = {
    NONE: Option("none"),
    "patch_dropout_half": Option("patch dropout 0.5", fields={"patch_dropout": 0.5}),
    "patch_dropout_three_quarters": Option("patch dropout 0.75", fields={"patch_dropout": 0.75}),
    "frozen_images": Option(
        "vision and concept encoders frozen", freeze=("vision_model", "concept_model", "concept_projection")
    ),
    "frozen_encoders": Option(
        "all encoders frozen", freeze=("vision_model", "concept_model", "concept_projection", "text_model")
    ),
    "lora": Option("LoRA, r = 16, queries and values", lora_rank=16, needs="peft"),
    "adamw_8bit": Option("8-bit AdamW", optimizer="adamw_8bit", needs="bitsandbytes"),
    "muon": Option("Muon", optimizer="muon"),
    "accumulation": Option("accumulation, 4 parts", parts=4),
    "gradient_caching": Option("gradient caching, 4 parts", parts=4, caching=True),
}
