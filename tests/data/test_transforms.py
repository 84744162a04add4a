import numpy as np
import pytest
import torch
from PIL import Image

from vicha_hf.data import transforms
from vicha_hf.data.image_files import LazyImage
from vicha_hf.data.randaugment import RandAugment
from vicha_hf.data.transforms import CROP_RATIO, EvaluationTransform, PretrainingTransform, random_crop_box
from vicha_hf.models.image_processing_vicha import ViChaImageProcessor


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(90, 70, 3), dtype=np.uint8))


def test_evaluation_is_the_image_processor_to_the_last_bit(image):
    processor = ViChaImageProcessor(
        size={"height": 48, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    )
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    actual = EvaluationTransform.from_image_processor(processor)(image)
    assert actual.shape == (3, 48, 32) and actual.dtype == torch.float32
    assert torch.equal(actual, expected)
    assert torch.equal(
        EvaluationTransform(32)(image), ViChaImageProcessor(size=32)(image, return_tensors="pt")["pixel_values"][0]
    )


def test_training_without_any_draw_is_evaluation(image):
    transform = PretrainingTransform(32, scale=None, hflip=False, randaugment=False)
    assert torch.equal(transform(image, np.random.default_rng(0)), EvaluationTransform(32)(image))


def test_same_generator_same_result_other_generator_other_result(image):
    transform = PretrainingTransform(32)
    results = [transform(image, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert results[0].shape == (3, 32, 32) and results[0].dtype == torch.float32
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_flip_happens_half_of_the_time_and_can_be_turned_off(image):
    plain = EvaluationTransform(32)(image)
    flipping = PretrainingTransform(32, scale=None, randaugment=False)
    # Resizing is symmetric only up to rounding, so "flipped" is judged by what is nearer.
    flipped = [(flipping(image, np.random.default_rng(seed)) - plain).abs().mean() > 0.1 for seed in range(200)]
    assert 70 < sum(flipped) < 130
    assert torch.equal(
        next(flipping(image, np.random.default_rng(seed)) for seed in range(200) if flipped[seed]), plain.flip(-1)
    )
    steady = PretrainingTransform(32, scale=None, hflip=False, randaugment=False)
    assert all(torch.equal(steady(image, np.random.default_rng(seed)), plain) for seed in range(20))


def test_own_randaugment_is_used(image):
    transform = PretrainingTransform(32, scale=None, hflip=False, randaugment=RandAugment(num_operations=0))
    assert torch.equal(transform(image, np.random.default_rng(0)), EvaluationTransform(32)(image))


def test_crop_is_cut_before_it_is_resized(monkeypatch):
    # Outside the crop everything is white; a filter that reached over the edge would brighten the black crop.
    image = Image.new("RGB", (100, 100), "white")
    image.paste("black", (0, 0, 50, 100))
    monkeypatch.setattr(transforms, "random_crop_box", lambda *arguments: (0, 0, 50, 100))
    values = PretrainingTransform(8, hflip=False, randaugment=False)(image, np.random.default_rng(0))
    assert torch.equal(values, EvaluationTransform(8)(Image.new("RGB", (50, 100), "black")))


def test_crop_boxes_follow_scale_and_ratio():
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box((300, 200), (0.2, 1.0), CROP_RATIO, rng) for _ in range(2000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 300).all() and (boxes[:, 3] <= 200).all()
    shares = widths * heights / (300 * 200)
    assert 0.19 < shares.min() < 0.25 and 0.8 < shares.max() <= 1
    ratios = widths / heights
    assert 0.73 < ratios.min() < 0.8 and 1.25 < ratios.max() < 1.36
    # Log-uniform, so lying and standing boxes are about equally frequent where the image allows both.
    small = shares < 0.4
    assert abs((ratios[small] > 1).mean() - 0.5) < 0.07


@pytest.mark.parametrize(("size", "expected_size"), [((1000, 10), (13, 10)), ((10, 1000), (10, 13)), ((1, 1), (1, 1))])
def test_extreme_images_get_a_centred_box(size, expected_size):
    # A crop of nearly the whole area in an allowed shape does not fit into a ribbon.
    left, upper, right, lower = random_crop_box(size, (0.99, 1.0), CROP_RATIO, np.random.default_rng(0))
    assert (right - left, lower - upper) == expected_size
    assert abs(left - (size[0] - right)) <= 1 and abs(upper - (size[1] - lower)) <= 1


@pytest.mark.parametrize("scale", [(0, 1), (0.5, 0.2), (0.5, 1.5), (0.5,)])
def test_bad_scale(scale):
    with pytest.raises(ValueError, match="crop scale"):
        PretrainingTransform(32, scale=scale)


def test_bad_size():
    with pytest.raises(ValueError, match="image_size=0"):
        EvaluationTransform(0)


@pytest.fixture
def photographs(tmp_path):
    """Smooth colours with some noise, as JPEG, small and large."""
    rng = np.random.default_rng(0)
    paths = {}
    for name, size in (("small", (640, 480)), ("large", (2048, 1536)), ("tall", (300, 1999))):
        small = rng.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))
        noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        paths[name] = str(tmp_path / f"{name}.jpg")
        Image.fromarray(noisy).save(paths[name], quality=92)
    return paths


def grey_values(pixel_values):
    """Normalised values as differences in grey values of 255."""
    return pixel_values.numpy() * 255 * np.array(ViChaImageProcessor.image_std)[:, None, None]


@pytest.mark.parametrize(("name", "most", "mean"), [("small", 2.01, 0.3), ("tall", 2.01, 0.3), ("large", 16, 1)])
def test_fast_loading_differs_as_little_as_documented(photographs, name, most, mean):
    # At reduced sides the edges of a crop move; without one they are the same.
    options = {"randaugment": False} | ({"scale": None} if name == "large" else {})
    exact, fast = PretrainingTransform(256, fast=False, **options), PretrainingTransform(256, **options)
    for seed in range(5):
        pair = [
            grey_values(transform(LazyImage(photographs[name], "here"), np.random.default_rng(seed)))
            for transform in (exact, fast)
        ]
        difference = np.abs(pair[0] - pair[1])
        assert difference.max() < most and difference.mean() < mean
        again = grey_values(fast(LazyImage(photographs[name], "here"), np.random.default_rng(seed)))
        assert np.array_equal(pair[1], again)


def test_the_exact_way_is_that_of_a_decoded_image(photographs):
    transform = PretrainingTransform(128, fast=False)
    for path in photographs.values():
        lazy = transform(LazyImage(path, "here"), np.random.default_rng(1))
        assert np.array_equal(lazy, transform(Image.open(path).convert("RGB"), np.random.default_rng(1)))
        whole = EvaluationTransform(64)
        assert np.array_equal(whole(LazyImage(path, "here")), whole(Image.open(path).convert("RGB")))


def test_a_large_jpeg_is_not_decoded_whole(photographs, monkeypatch):
    sizes = []
    decode = LazyImage.decode
    monkeypatch.setattr(
        LazyImage, "decode", lambda self, reduction=1: sizes.append(reduction) or decode(self, reduction)
    )
    PretrainingTransform(128, scale=None)(LazyImage(photographs["large"], "here"), np.random.default_rng(1))
    PretrainingTransform(128, scale=None)(LazyImage(photographs["small"], "here"), np.random.default_rng(1))
    PretrainingTransform(400, scale=None)(LazyImage(photographs["small"], "here"), np.random.default_rng(1))
    assert sizes == [8, 2, 1]
