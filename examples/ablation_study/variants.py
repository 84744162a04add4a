"""The methods that are compared, as changes of two recipes, and what the papers say about their order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """
    One method.

    Args:
        title: for readers.
        family: whose recipe it starts from, "vicha" or "simla".
        changes: of the recipe, by dotted name.
    """

    title: str
    family: str = "vicha"
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reads_concepts(self) -> bool:
        """Whether it trains with visual concepts."""
        return self.family == "vicha" and self.changes.get("model.config.use_concepts", True)


_NO_HIERARCHY = {"model.config.hierarchical_itc_weight": 0}
_NO_MIM = {"model.config.mim_weight": 0}
# Concept augmentation (ViCHA, section 3.2): a step sees a share of an image's concepts, drawn anew.
_NO_CONCEPT_AUGMENTATION = {"data.concept_fraction": 1.0}

# Each row up to ViCHA adds one thing to the row before. The first is what others are measured against.
BASELINE = "albef"
VARIANTS = {
    BASELINE: Variant("ALBEF", changes={"model.config.use_concepts": False} | _NO_HIERARCHY | _NO_MIM),
    "vc": Variant("+ visual concepts", changes=_NO_HIERARCHY | _NO_MIM | _NO_CONCEPT_AUGMENTATION),
    "h_itc": Variant("+ H-ITC", changes=_NO_MIM | _NO_CONCEPT_AUGMENTATION),
    "mim": Variant("+ MIM", changes=_NO_CONCEPT_AUGMENTATION),
    "vicha": Variant("+ concept augmentation = ViCHA"),
    "simla": Variant("SIMLA", family="simla"),
}


@dataclass(frozen=True)
class Claim:
    """
    A paper's statement about two rows.

    Args:
        better, worse: names of the rows.
        source: paper and place.
    """

    better: str
    worse: str
    source: str


_VICHA = "ViCHA (2208.13628)"
CLAIMS = (
    Claim("vc", BASELINE, f"{_VICHA}, section 3.2: visual concepts"),
    Claim("h_itc", "vc", f"{_VICHA}, section 3.1: hierarchical contrast"),
    Claim("mim", "h_itc", f"{_VICHA}, section 3.3: masked images"),
    Claim("vicha", "mim", f"{_VICHA}, section 3.2: a part of the concepts at each step"),
    Claim("vicha", BASELINE, f"{_VICHA}: the whole method"),
    Claim("simla", BASELINE, "SIMLA (2203.14395): the whole method"),
)
