"""Plurals merged with their singulars, where that is safe: a concept counted twice takes the place of another."""

from collections.abc import Mapping


IRREGULAR_SINGULARS = {
    "cacti": "cactus",
    "calves": "calf",
    "children": "child",
    "elves": "elf",
    "feet": "foot",
    "geese": "goose",
    "halves": "half",
    "hooves": "hoof",
    "knives": "knife",
    "leaves": "leaf",
    "loaves": "loaf",
    "men": "man",
    "mice": "mouse",
    "oxen": "ox",
    "scarves": "scarf",
    "shelves": "shelf",
    "teeth": "tooth",
    "thieves": "thief",
    "wives": "wife",
    "wolves": "wolf",
    "women": "woman",
}
# Things that come in pairs or are another thing than their singular: glasses are no glass.
PLURAL_ONLY = frozenset(
    [
        "binoculars",
        "boxers",
        "briefs",
        "clothes",
        "dungarees",
        "earphones",
        "glasses",
        "goggles",
        "headphones",
        "jeans",
        "khakis",
        "leggings",
        "outskirts",
        "overalls",
        "pajamas",
        "pants",
        "pliers",
        "pyjamas",
        "sandals",
        "scissors",
        "scrubs",
        "shades",
        "shears",
        "shorts",
        "skis",
        "slacks",
        "spectacles",
        "sunglasses",
        "suspenders",
        "sweatpants",
        "tights",
        "tongs",
        "trousers",
        "trunks",
        "tweezers",
        "underpants",
    ]
)
# Ends of words whose singular cannot be told from the plural alone: cookies and ponies, horses and buses, shoes and
# potatoes; and ends of singulars.
_UNSAFE_ENDINGS = ("ies", "ses", "xes", "zes", "hes", "oes", "ves", "ss", "us", "is", "ics")
_SHORTEST_PLURAL = 4


def singular_of(word: str, singulars: Mapping[str, int]) -> str:
    """
    The singular that a plural is counted as; the word itself where none is safe.

    Args:
        word: a noun in lower case that stands in the plural; of several words the last one is the head.
        singulars: the nouns that occur in the singular.
    """
    *modifiers, head = word.split(" ")
    if head in PLURAL_ONLY:
        return word
    for candidate in _candidates(head):
        joined = " ".join([*modifiers, candidate])
        if joined in singulars or candidate in singulars:
            return joined
    if head in IRREGULAR_SINGULARS:
        return " ".join([*modifiers, IRREGULAR_SINGULARS[head]])
    if len(head) >= _SHORTEST_PLURAL and head.endswith("s") and not head.endswith(_UNSAFE_ENDINGS):
        return " ".join([*modifiers, head[:-1]])
    return word


def _candidates(head: str) -> list[str]:
    """The possible singulars of a plural, the likeliest first."""
    if head in IRREGULAR_SINGULARS:
        return [IRREGULAR_SINGULARS[head]]
    if len(head) < _SHORTEST_PLURAL or not head.endswith("s") or head.endswith("ss"):
        return []
    candidates = [head[:-1]]
    if head.endswith("ies"):
        candidates.append(head[:-3] + "y")
    if head.endswith("es"):
        candidates.append(head[:-2])
    if head.endswith("ves"):
        candidates += [head[:-3] + "f", head[:-3] + "fe"]
    return candidates
