"""The card of a converted checkpoint: where the weights come from, and whose figures are whose."""

import hashlib
from pathlib import Path

from ..evaluation.card_results import CARD_FILE
from ..models.modeling_vision_text import VisionTextPreTrainedModel
from ..reporting.citations import PAPERS
from ..reporting.model_card import method_name
from ..reporting.run_card import RunCard


def write_card(
    model: VisionTextPreTrainedModel, source: Path, folder: Path, model_id: str, license: str | None
) -> None:
    """
    Writes `README.md` into a converted folder.

    Args:
        model: what the checkpoint was converted to.
        source: the checkpoint.
        folder: where the model was saved.
        model_id: repository on the Hub, or the folder.
        license: of the weights, by the Hub's identifier; None where it is not known.
    """
    method = method_name(model.config)
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    card = RunCard(
        model=model,
        model_id=model_id,
        summary=f"The published {method} checkpoint `{source.name}` for transformers.",
        license=license,
        data={
            "training": f"the corpora that the paper names ({PAPERS[method.lower()]}); the checkpoint names none",
            "licence of the training data": "not stated by the checkpoint: that of each corpus, by its owners",
        },
        origin=f"`vicha-hf convert` made this folder of `{source.name}` (sha256 `{digest}`). No weight was changed. The figures "
        f"of the paper are the paper's: they were measured with its own code and stand in its tables ({PAPERS[method.lower()]}). "
        "None is repeated here.",
    )
    (folder / CARD_FILE).write_text(str(card.build()), encoding="utf-8")
