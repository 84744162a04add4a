"""Divides scenes into splits that share none, and makes the captions of evaluation splits unmistakable."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from .captions import Caption, CaptionWriter
from .facts import judge_all
from .layout import SceneSampler
from .scene import Scene
from .sprites import NOUNS


_CAPTION_ATTEMPTS = 8


class _Patience:
    """Counts rejected scenes, so that an impossible request ends with an error and not never."""

    def __init__(self, number: int, wanted: str):
        self.left = 2000 + 20 * number
        self.wanted = wanted

    def reject(self, found: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise ValueError(
                f"Found only {found} of {self.wanted}: ask for fewer scenes, or raise max_objects, so that there are "
                "more different ones"
            )


@dataclass(frozen=True)
class CaptionedScene:
    scene: Scene
    captions: tuple[Caption, ...]


def choose_held_out_pairs(fraction: float, rng: random.Random) -> frozenset[tuple[str, str]]:
    """A random share of all pairs of nouns, each pair sorted; only the compositional split shows them together.

    The pairs are dealt out evenly, so that every noun loses about the same share of its partners.
    """
    pairs = [(a, b) for i, a in enumerate(NOUNS) for b in NOUNS[i + 1 :]]
    rng.shuffle(pairs)
    wanted = round(fraction * len(pairs))
    uses = dict.fromkeys(NOUNS, 0)
    held_out: list[tuple[str, str]] = []
    for limit in range(1, len(NOUNS)):
        for a, b in pairs:
            if len(held_out) < wanted and (a, b) not in held_out and max(uses[a], uses[b]) < limit:
                held_out.append((a, b))
                uses[a] += 1
                uses[b] += 1
        if len(held_out) == wanted:
            break
    return frozenset(held_out)


class SplitMaker:
    """Makes one split after the other; no two splits share a scene's content.

    Evaluation splits must be made before the training split: they are then free draws, and training avoids them.
    """

    def __init__(self, sampler: SceneSampler, writer: CaptionWriter):
        self.sampler = sampler
        self.writer = writer
        self._contents_of_other_splits: set[str] = set()

    def make_training(
        self, number: int, captions_per_scene: int, rng: random.Random, advance: Callable[[], object]
    ) -> list[CaptionedScene]:
        """Scenes with several different captions each; contents may repeat in other layouts.

        `advance` is called once per finished scene.

        Raises:
            ValueError: when hardly any scene is left that the evaluation splits do not show.
        """
        items: list[CaptionedScene] = []
        contents: set[str] = set()
        patience = _Patience(number, f"{number} training scenes that no evaluation split shows")
        while len(items) < number:
            scene = self.sampler.sample(rng)
            if scene.content_key in self._contents_of_other_splits:
                patience.reject(len(items))
                continue
            captions: dict[str, Caption] = {}
            for _ in range(_CAPTION_ATTEMPTS * captions_per_scene):
                if len(captions) == captions_per_scene:
                    break
                caption = self.writer.write(scene, rng)
                captions.setdefault(caption.text, caption)
            contents.add(scene.content_key)
            items.append(CaptionedScene(scene, tuple(captions.values())))
            advance()
        self._contents_of_other_splits |= contents
        return items

    def make_evaluation(
        self, number: int, rng: random.Random, advance: Callable[[], object], with_held_out_pair: bool = False
    ) -> list[CaptionedScene]:
        """Scenes with one caption each, no two with the same content.

        No caption is true, or could be taken as true, of another image of the split: without that, a perfect model
        could not reach a recall of 100 %.

        Args:
            with_held_out_pair: every scene shows a pair of nouns that no other split shows together.

        Raises:
            ValueError: when no further distinguishable scene is found.
        """
        items: list[CaptionedScene] = []
        contents: set[str] = set()
        pairs = sorted(self.sampler.held_out_pairs)
        if with_held_out_pair and number and not pairs:
            raise ValueError(
                f"{number} compositional test scenes need held-out pairs: raise held_out_pair_fraction above 0"
            )
        patience = _Patience(number, f"{number} evaluation scenes that captions can tell apart")
        while len(items) < number:
            scene = (
                self.sampler.sample_with_pair(rng, rng.choice(pairs))
                if with_held_out_pair
                else self.sampler.sample(rng)
            )
            taken = scene.content_key in contents or scene.content_key in self._contents_of_other_splits
            caption = None if taken else self._unmistakable_caption(scene, items, rng)
            if caption is None:
                patience.reject(len(items))
                continue
            contents.add(scene.content_key)
            items.append(CaptionedScene(scene, (caption,)))
            advance()
        self._contents_of_other_splits |= contents
        return items

    def _unmistakable_caption(self, scene: Scene, items: list[CaptionedScene], rng: random.Random) -> Caption | None:
        """A caption that is false of every image so far, given that their captions are all false of this one."""
        if any(judge_all(item.captions[0].facts, scene) is not False for item in items):
            return None
        for _ in range(_CAPTION_ATTEMPTS):
            caption = self.writer.write(scene, rng)
            if all(judge_all(caption.facts, item.scene) is False for item in items):
                return caption
        return None
