from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vicha_hf.data import randaugment
from vicha_hf.data.randaugment import OPERATIONS, RandAugment


def make_image(width=40, height=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8))


def test_published_constants():
    assert (randaugment.NUM_OPERATIONS, randaugment.LEVEL, randaugment.MAX_LEVEL) == (2, 7, 10)
    assert randaugment.APPLY_PROBABILITY == randaugment.NEGATE_PROBABILITY == 0.5
    assert randaugment.FILL == (128, 128, 128)
    assert randaugment.enhancement_factor(7) == pytest.approx(1.36)
    assert randaugment.shear_slope(7) == pytest.approx(0.21)
    assert randaugment.translation_pixels(7) == pytest.approx(7)
    assert randaugment.rotation_degrees(7) == pytest.approx(21)
    published = "Identity AutoContrast Equalize Brightness Sharpness ShearX ShearY TranslateX TranslateY Rotate"
    assert list(OPERATIONS) == published.split()


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_every_operation_keeps_size_and_mode(name, sign):
    result = OPERATIONS[name](make_image(), 7, sign)
    assert (result.size, result.mode) == ((40, 30), "RGB")


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "Identity"])
def test_every_operation_changes_a_dull_image(name):
    dull = Image.fromarray(np.asarray(make_image()) // 4 + 60)
    assert (np.asarray(OPERATIONS[name](dull, 7, 1)) != np.asarray(dull)).any()


def test_identity():
    image = make_image()
    assert np.array_equal(np.asarray(OPERATIONS["Identity"](image, 7, 1)), np.asarray(image))


@pytest.mark.parametrize(
    ("sign", "kept", "shifted", "uncovered"),
    [(1, slice(0, 33), slice(7, 40), slice(0, 7)), (-1, slice(7, 40), slice(0, 33), slice(33, 40))],
)
def test_translation_moves_seven_pixels_and_fills_with_grey(sign, kept, shifted, uncovered):
    image = make_image(40, 40)
    pixels = np.asarray(image)
    moved = np.asarray(OPERATIONS["TranslateX"](image, 7, sign))
    assert np.array_equal(moved[:, shifted], pixels[:, kept])
    assert (moved[:, uncovered] == 128).all()
    moved = np.asarray(OPERATIONS["TranslateY"](image, 7, sign))
    assert np.array_equal(moved[shifted], pixels[kept])
    assert (moved[uncovered] == 128).all()


def test_brightness_multiplies():
    image = Image.new("RGB", (4, 4), (100, 50, 250))
    assert OPERATIONS["Brightness"](image, 7, 1).getpixel((0, 0)) == (136, 68, 255)


def test_auto_contrast_reaches_both_ends():
    pixels = np.asarray(OPERATIONS["AutoContrast"](Image.fromarray(np.asarray(make_image()) // 2 + 40), 7, 1))
    assert (pixels.min(axis=(0, 1)) == 0).all() and (pixels.max(axis=(0, 1)) == 255).all()


def test_shear_moves_far_rows_further():
    image = Image.new("RGB", (100, 100))
    image.paste((255, 0, 0), (50, 0, 52, 100))
    right = np.asarray(OPERATIONS["ShearX"](image, 7, 1))[:, :, 0].astype(float)
    columns = np.arange(100)
    # 128 is the fill colour; only the line is brighter.
    where = [(columns[row > 150]).mean() for row in right[[0, 50, 99]]]
    assert where == pytest.approx([50.5, 50.5 + 0.21 * 50, 50.5 + 0.21 * 99], abs=1)
    down = np.asarray(OPERATIONS["ShearY"](image.transpose(Image.Transpose.TRANSPOSE), 7, 1))[:, :, 0].T
    assert np.abs(down.astype(float) - right).max() <= 1


def test_rotation_turns_about_the_centre():
    image = Image.new("RGB", (101, 101))
    image.paste((255, 0, 0), (90, 49, 93, 52))
    pixels = np.asarray(OPERATIONS["Rotate"](image, 7, 1))
    rows, columns = np.nonzero((pixels[:, :, 0] > 150) & (pixels[:, :, 1] < 60))
    angle = np.degrees(np.arctan2(50 - rows.mean(), columns.mean() - 50))
    assert angle == pytest.approx(21, abs=1)


def test_draws_are_reproducible_and_follow_the_generator():
    augment, image = RandAugment(), make_image()
    results = [np.asarray(augment(image, np.random.default_rng(seed))) for seed in (3, 3, *range(20))]
    assert np.array_equal(results[0], results[1])
    assert len({result.tobytes() for result in results[2:]}) > 10


def test_two_of_ten_with_replacement_each_applied_half_of_the_time(monkeypatch):
    applied = []
    for name in OPERATIONS:
        monkeypatch.setitem(
            OPERATIONS, name, lambda image, level, sign, name=name: applied.append((name, level, sign)) or image
        )
    augment, rng, repetitions = RandAugment(), np.random.default_rng(0), 4000
    per_call = Counter()
    twice = 0
    for _ in range(repetitions):
        before = len(applied)
        augment(None, rng)
        per_call[len(applied) - before] += 1
        twice += len(applied) - before == 2 and applied[-1][0] == applied[-2][0]
    # Binomial(2, 1/2): 1000, 2000, 1000, standard deviations about 30.
    assert [per_call[count] for count in range(3)] == pytest.approx([1000, 2000, 1000], abs=150)
    assert twice == pytest.approx(100, abs=40)
    assert {level for _, level, _ in applied} == {7}
    counts = Counter((name, sign) for name, _, sign in applied)
    assert len(counts) == 20 and all(abs(count - 200) < 80 for count in counts.values())


@pytest.mark.parametrize("arguments", [{"num_operations": -1}, {"level": 11}, {"level": -1}])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        RandAugment(**arguments)
