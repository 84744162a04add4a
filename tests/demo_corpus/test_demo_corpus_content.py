"""What the demo corpus says is true: boxes against pixels, captions against boxes, splits and noise against promises."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from vicha_hf.demo_corpus.captions import CaptionWriter, noun_phrase
from vicha_hf.demo_corpus.concepts import extract_concepts, measured_noise, retrieval_by_concepts_alone
from vicha_hf.demo_corpus.facts import OnBackground, Related, Relation, Things, judge_all, relation_holds
from vicha_hf.demo_corpus.layout import SceneSampler
from vicha_hf.demo_corpus.parameters import CaptionParameters, ConceptParameters, SceneParameters
from vicha_hf.demo_corpus.rendering import render_background, render_scene
from vicha_hf.demo_corpus.scene import Background, Scene, SceneObject
from vicha_hf.demo_corpus.splits import SplitMaker, choose_held_out_pairs
from vicha_hf.demo_corpus.sprites import (
    CATEGORY_OF,
    NOUNS,
    NOUNS_OF_CATEGORY,
    PLURALS,
    SPRITE_BY_NAME,
    SPRITES,
    SpriteLibrary,
)


@pytest.fixture(scope="module")
def library():
    return SpriteLibrary()


@pytest.fixture(scope="module")
def scenes(library):
    sampler = SceneSampler(SceneParameters(), library, frozenset())
    rng = random.Random(0)
    return [sampler.sample(rng) for _ in range(300)]


@pytest.fixture(scope="module")
def splits(library):
    held_out = choose_held_out_pairs(0.1, random.Random(0))
    maker = SplitMaker(SceneSampler(SceneParameters(), library, held_out), CaptionWriter(CaptionParameters()))

    def advance():
        return None

    return held_out, {
        "test": maker.make_evaluation(60, random.Random(1), advance),
        "compositional": maker.make_evaluation(60, random.Random(2), advance, with_held_out_pair=True),
        "train": maker.make_training(300, 2, random.Random(3), advance),
    }


def thing(noun: str, box: tuple[int, int, int, int], colour: str | None = None) -> SceneObject:
    return SceneObject(noun, colour, CATEGORY_OF[noun], box)


def scene_of(*objects: SceneObject) -> Scene:
    return Scene(objects, Background("white", (250, 250, 250), (250, 250, 250)), 96)


# --- sprites ---------------------------------------------------------------------------------------------------------

# Unicode calls these by another word than people do.
UNICODE_SYNONYMS = {"pumpkin": "JACK-O-LANTERN", "train": "LOCOMOTIVE", "car": "AUTOMOBILE|RECREATIONAL VEHICLE"}


def test_sprites_are_called_what_unicode_calls_them():
    for sprite in SPRITES:
        pattern = UNICODE_SYNONYMS.get(sprite.noun, sprite.noun.upper())
        assert re.search(pattern, sprite.unicode_name), f"{sprite.name} is {sprite.unicode_name}"


def test_sprite_names_and_drawings_are_unique():
    assert len(SPRITE_BY_NAME) == len(SPRITES) == len({sprite.emoji for sprite in SPRITES})
    assert len(NOUNS) == sum(len(nouns) for nouns in NOUNS_OF_CATEGORY.values()) >= 60


def test_nouns_with_several_drawings_have_different_colours():
    for noun in NOUNS:
        colours = [sprite.colour for sprite in SPRITES if sprite.noun == noun]
        assert len(set(colours)) == len(colours)
        assert len(colours) == 1 or None not in colours


HUE_RANGES = {"red": (340, 20), "orange": (15, 45), "yellow": (40, 62), "green": (62, 160), "blue": (190, 250)}


@pytest.mark.parametrize("sprite", [s for s in SPRITES if s.colour in HUE_RANGES], ids=lambda s: s.name)
def test_colour_words_fit_the_pixels(sprite, library):
    image = library.image(sprite.name, 64)
    visible = np.asarray(image)[..., 3] > 200
    hue, saturation, value = np.asarray(image.convert("RGB").convert("HSV"), dtype=float).transpose(2, 0, 1)
    coloured = visible & (saturation > 60) & (value > 80)
    degrees = hue[coloured] * 360 / 255
    low, high = HUE_RANGES[sprite.colour]
    inside = (degrees >= low) & (degrees <= high) if low < high else (degrees >= low) | (degrees <= high)
    assert inside.mean() > 0.5


# --- images and boxes ----------------------------------------------------------------------------------------------


def test_boxes_are_exactly_the_pixels_that_differ_from_the_background(scenes, library):
    for scene in scenes[:60]:
        empty = np.asarray(render_background(scene.background, scene.image_size), dtype=int)
        for item in scene.objects:
            alone = Scene((item,), scene.background, scene.image_size)
            changed = np.abs(np.asarray(render_scene(alone, library), dtype=int) - empty).max(-1) > 0
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            box = (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
            assert box == item.box, f"{item} is drawn in {box}"


def test_objects_do_not_overlap_and_have_the_sizes_asked_for(scenes):
    for scene in scenes:
        covered = np.zeros((96, 96), dtype=int)
        for x, y, width, height in (item.box for item in scene.objects):
            covered[y : y + height, x : x + width] += 1
        assert covered.max() == 1
        assert 2 <= len(scene.objects) <= 3
        assert all(0.26 * 96 <= item.size <= 0.47 * 96 for item in scene.objects)


def test_things_appear_equally_often_whatever_their_shape(library):
    """In tight images, drawing other things where the first did not fit would favour flat and thin ones."""
    tight = SceneParameters(min_objects=3, min_sprite_fraction=0.42)
    sampler, rng = SceneSampler(tight, library, frozenset()), random.Random(0)
    counts = Counter(item.noun for _ in range(1500) for item in sampler.sample(rng).objects)
    expected = counts.total() / len(NOUNS)
    # Repeated sprites make the counts vary a little more than independent draws would: about 1.2 per noun.
    assert sum((counts[noun] - expected) ** 2 / expected for noun in NOUNS) < 2 * len(NOUNS)


def test_scene_survives_its_record(scenes, library):
    for scene in scenes[:20]:
        again = Scene.from_record(scene.to_record())
        assert again == scene
        assert render_scene(again, library).tobytes() == render_scene(scene, library).tobytes()


# --- facts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "relation", "second", "expected"),
    [
        ((0, 40, 20, 20), Relation.LEFT_OF, (50, 40, 20, 20), True),
        ((50, 40, 20, 20), Relation.LEFT_OF, (0, 40, 20, 20), False),
        ((50, 40, 20, 20), Relation.RIGHT_OF, (0, 40, 20, 20), True),
        ((0, 0, 20, 20), Relation.LEFT_OF, (30, 60, 20, 20), None),  # further below than left
        ((0, 0, 20, 20), Relation.ABOVE, (30, 60, 20, 20), True),
        ((40, 0, 20, 20), Relation.LEFT_OF, (40, 50, 20, 20), False),  # straight above
        ((0, 0, 40, 40), Relation.BIGGER, (50, 50, 20, 20), True),
        ((0, 0, 24, 20), Relation.BIGGER, (50, 50, 20, 20), None),
        ((0, 0, 20, 20), Relation.BIGGER, (50, 50, 20, 20), False),
        ((50, 50, 20, 20), Relation.SMALLER, (0, 0, 40, 40), True),
    ],
)
def test_relations_are_true_false_or_unclear(first, relation, second, expected):
    a, b = thing("cat", first), thing("dog", second)
    assert relation_holds(a, relation, b) is expected
    assert relation_holds(b, relation.inverse, a) is expected


def test_things_are_counted_and_more_than_said_is_unclear():
    scene = scene_of(
        thing("apple", (0, 0, 9, 9), "red"), thing("apple", (30, 0, 9, 9), "green"), thing("cat", (60, 0, 9, 9))
    )
    assert Things("apple", None, 2).judge(scene) is True
    assert Things("apple", None, 1).judge(scene) is None
    assert Things("apple", "red", 1).judge(scene) is True
    assert Things("apple", "red", 2).judge(scene) is False
    assert Things("dog").judge(scene) is False
    red, cat = Things("apple", "red"), Things("cat")
    assert Related(red, Relation.LEFT_OF, cat).judge(scene) is True
    assert Related(cat, Relation.LEFT_OF, red).judge(scene) is False
    assert Related(Things("apple"), Relation.LEFT_OF, cat).judge(scene) is None
    assert Related(Things("dog"), Relation.LEFT_OF, cat).judge(scene) is False
    assert judge_all([cat, OnBackground("white")], scene) is True
    assert judge_all([cat, OnBackground("beach")], scene) is False
    assert judge_all([cat, Things("apple")], scene) is None


# --- captions --------------------------------------------------------------------------------------------------------

COLOURS = sorted({sprite.colour for sprite in SPRITES if sprite.colour})
SINGULARS = {plural: noun for noun, plural in PLURALS.items()}
COUNT_WORDS = {"a": 1, "an": 1, "the": None, "two": 2, "three": 3}
PHRASE = re.compile(
    rf"\b(?P<count>the two|the three|{'|'.join(COUNT_WORDS)}) (?:(?:big|large|small|bigger) )?"
    rf"(?:(?P<colour>{'|'.join(COLOURS)}) )?(?P<noun>{'|'.join(sorted({*NOUNS, *SINGULARS}, key=len, reverse=True))})\b"
)
RELATION_WORDS = {
    "left": r"(?:to the |on the )?left of",
    "right": r"(?:to the |on the )?right of",
    "above": "above|over",
    "below": "below|under|beneath",
}


def parse_phrase(match: re.Match) -> tuple[int | None, str | None, str]:
    noun = match["noun"] if match["noun"] in PLURALS else SINGULARS[match["noun"]]
    count = None if match["count"].startswith("the") else COUNT_WORDS[match["count"]]
    if count == 1:
        assert match["noun"] in NOUNS, f"singular article with a plural: {match[0]!r}"
        following = match[0].split()[1]
        assert match["count"] == ("an" if following[0] in "aeiou" else "a"), match[0]
    elif count:
        assert match["noun"] in SINGULARS, f"number with a singular: {match[0]!r}"
    return count, match["colour"], noun


def things_of(scene: Scene, noun: str, colour: str | None) -> list[SceneObject]:
    return [item for item in scene.objects if item.noun == noun and colour in (None, item.colour)]


def stands(first: SceneObject, relation: str, second: SceneObject) -> bool:
    (ax, ay, aw, ah), (bx, by, bw, bh) = first.box, second.box
    return {"left": ax + aw <= bx, "right": bx + bw <= ax, "above": ay + ah <= by, "below": by + bh <= ay}[relation]


@pytest.fixture(scope="module")
def captioned(scenes):
    # Long enough for every turn of phrase.
    writer, rng = CaptionWriter(CaptionParameters(max_caption_words=20)), random.Random(5)
    return [(scene, writer.write(scene, rng)) for scene in scenes for _ in range(4)]


def test_captions_name_exactly_the_things_there_with_count_and_colour(captioned):
    for scene, caption in captioned:
        named = Counter()
        for match in PHRASE.finditer(caption.text):
            count, colour, noun = parse_phrase(match)
            if count is None:
                assert things_of(scene, noun, colour), caption.text
                continue
            assert len(things_of(scene, noun, colour)) == count, caption.text
            named[noun] += count
        assert named == Counter(item.noun for item in scene.objects), caption.text


def test_stated_positions_agree_with_the_boxes(captioned):
    """Reads `X [is] left of Y` and `left of Y there is X` from the words alone, without the caption's facts."""
    checked = 0
    for scene, caption in captioned:
        skeleton, phrases = caption.text, []
        for match in PHRASE.finditer(caption.text):
            phrases.append(parse_phrase(match)[1:])
            skeleton = skeleton.replace(match[0], f"<{len(phrases) - 1}>", 1)
        for name, words in RELATION_WORDS.items():
            for pattern, order in (
                (rf"<(\d)>(?: is| are)? (?:{words}) <(\d)>", 1),
                (rf"^(?:{words}) <(\d)> there (?:is|are) <(\d)>", -1),
            ):
                for found in re.finditer(pattern, skeleton):
                    first, second = (
                        things_of(scene, phrases[int(i)][1], phrases[int(i)][0]) for i in found.groups()[::order]
                    )
                    assert all(stands(a, name, b) for a in first for b in second), caption.text
                    checked += 1
    assert checked > 300


def test_facts_of_a_caption_are_true_of_its_own_image(captioned):
    for scene, caption in captioned:
        assert judge_all(caption.facts, scene) is True, caption.text


def test_captions_use_the_whole_grammar_and_stay_short(captioned):
    texts = [caption.text for _, caption in captioned]
    for fragment in (
        "to the left of",
        "above",
        "there are two",
        "a picture of",
        "bigger",
        "a large",
        "in the snow",
        "background",
        " with the ",
        " are ",
    ):
        assert any(fragment in text for text in texts), fragment
    assert max(len(text.split()) for text in texts) <= 20
    assert not any(re.search(r"\ban? (?:two|a|an)\b|  |\bis two\b", text) for text in texts)


def test_captions_of_crowded_scenes_are_true_and_complete(library):
    crowd = SceneParameters(min_objects=5, max_objects=7, max_sprite_fraction=0.3, min_sprite_fraction=0.2)
    sampler, writer, rng = (
        SceneSampler(crowd, library, frozenset()),
        CaptionWriter(CaptionParameters()),
        random.Random(0),
    )
    for _ in range(30):
        scene = sampler.sample(rng)
        caption = writer.write(scene, rng)
        assert judge_all(caption.facts, scene) is True
        assert all(item.noun in caption.text or PLURALS[item.noun] in caption.text for item in scene.objects)


@pytest.mark.parametrize(
    ("things", "definite", "text"),
    [
        (Things("apple"), False, "an apple"),
        (Things("apple", "red"), False, "a red apple"),
        (Things("cat", "orange"), False, "an orange cat"),
        (Things("mouse", None, 2), False, "two mice"),
        (Things("mouse", "grey", 3), True, "the three grey mice"),
        (Things("umbrella"), True, "the umbrella"),
    ],
)
def test_noun_phrases(things, definite, text):
    assert noun_phrase(things, definite) == text


# --- splits ----------------------------------------------------------------------------------------------------------


def test_splits_share_no_scene(splits):
    contents = {name: {item.scene.content_key for item in items} for name, items in splits[1].items()}
    for name, others in (("test", ("train", "compositional")), ("compositional", ("train",))):
        for other in others:
            assert not contents[name] & contents[other]


def test_splits_share_no_scene_even_when_scenes_are_scarce(library):
    """One thing per image: only as many contents as sprites, so splits would collide if nothing prevented it."""
    single = SceneParameters(min_objects=1, max_objects=1)
    maker = SplitMaker(SceneSampler(single, library, frozenset()), CaptionWriter(CaptionParameters()))
    made = [maker.make_evaluation(15, random.Random(seed), lambda: None) for seed in range(2)]
    made.append(maker.make_training(300, 1, random.Random(2), lambda: None))
    contents = [{item.scene.content_key for item in items} for items in made]
    assert [len(found) for found in contents[:2]] == [15, 15]
    assert contents[0].isdisjoint(contents[1]) and contents[2].isdisjoint(contents[0] | contents[1])


def test_only_the_compositional_split_shows_held_out_pairs(splits):
    held_out, made = splits
    assert all(item.scene.noun_pairs & held_out for item in made["compositional"])
    assert not any(item.scene.noun_pairs & held_out for name in ("train", "test") for item in made[name])


def test_held_out_pairs_are_spread_evenly_and_leave_every_noun_partners():
    held_out = choose_held_out_pairs(0.1, random.Random(0))
    assert len(held_out) == round(0.1 * len(NOUNS) * (len(NOUNS) - 1) / 2)
    uses = Counter(noun for pair in held_out for noun in pair)
    assert max(uses.values()) - min(uses[noun] for noun in NOUNS) <= 2
    assert held_out != choose_held_out_pairs(0.1, random.Random(1))


@pytest.mark.parametrize("split", ["test", "compositional"])
def test_captions_of_evaluation_splits_fit_one_image_only(split, splits):
    items = splits[1][split]
    assert len({item.captions[0].text for item in items}) == len(items)
    for caption_owner in items:
        for other in items:
            verdict = judge_all(caption_owner.captions[0].facts, other.scene)
            assert verdict is (other is caption_owner)


def test_training_captions_of_an_image_differ(splits):
    assert all(len({caption.text for caption in item.captions}) == 2 for item in splits[1]["train"])


# --- concepts --------------------------------------------------------------------------------------------------------


def extract_all(scenes, parameters, seed=0):
    rng = random.Random(seed)
    return [extract_concepts(scene, parameters, rng) for scene in scenes]


@pytest.mark.parametrize("miss_rate", [0.0, 0.3, 0.7, 1.0])
def test_measured_misses_are_near_the_rate(miss_rate, scenes):
    parameters = ConceptParameters(miss_rate=miss_rate)
    concepts = extract_all(scenes, parameters)
    noise = measured_noise(scenes, concepts)
    assert noise["recall"] == pytest.approx(1 - miss_rate, abs=0.06)
    assert noise["precision"] == pytest.approx((1 - miss_rate) * np.mean([len(s.nouns) for s in scenes]) / 8, abs=0.03)
    assert all(len(words) == len(set(words)) == 8 for words in concepts)


@pytest.mark.parametrize("lookalike_rate", [0.0, 0.5, 1.0])
def test_measured_lookalikes_are_near_the_rate(lookalike_rate):
    """One thing, never seen, and one word: a lookalike, or else a random word that may be one by chance."""
    scenes = [scene_of(thing("train", (0, 0, 9, 9)))] * 600
    parameters = ConceptParameters(concepts_per_image=1, miss_rate=1.0, lookalike_rate=lookalike_rate)
    words = [words[0] for words in extract_all(scenes, parameters)]
    peers = [noun for noun in NOUNS_OF_CATEGORY["vehicle"] if noun != "train"]
    expected = lookalike_rate + (1 - lookalike_rate) * len(peers) / (len(NOUNS) - 1)
    assert np.mean([word in peers for word in words]) == pytest.approx(expected, abs=0.06)
    assert set(words) >= set(peers)


def test_position_in_the_list_gives_nothing_away(scenes):
    concepts = extract_all(scenes, ConceptParameters(miss_rate=0.0))
    ranks = [words.index(noun) for scene, words in zip(scenes, concepts, strict=True) for noun in scene.nouns]
    assert np.mean(ranks) == pytest.approx(3.5, abs=0.3)


def test_retrieval_by_concepts_alone_measures_what_they_give_away(splits):
    scenes = [item.scene for item in splits[1]["test"]]

    def measure(**rates):
        parameters = ConceptParameters(**rates)
        return retrieval_by_concepts_alone(scenes, extract_all(scenes, parameters), parameters)

    perfect = measure(miss_rate=0.0, lookalike_rate=0.0, concepts_per_image=3)
    useless = measure(miss_rate=1.0, lookalike_rate=0.0)
    default = measure()
    assert min(perfect.values()) > 75
    assert max(useless["r1_i2t"], useless["r1_t2i"]) < 12
    assert 10 < default["r1_i2t"] < 60
    # Knowing the extractor's rates can only help, up to the noise of 60 images.
    assert default["r1_i2t"] > default["overlap_r1_i2t"] - 5


def test_ties_count_as_the_chance_of_guessing_right():
    twins = [scene_of(thing("cat", (0, 0, 9, 9))), scene_of(thing("cat", (50, 0, 9, 9)))]
    scores = retrieval_by_concepts_alone(twins, [["cat"], ["cat"]], ConceptParameters())
    assert set(scores.values()) == {50.0}
