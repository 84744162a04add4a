import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor

from vicha_hf import ViChaImageProcessor
from vicha_hf.models.image_processing_vicha import to_upright_rgb


MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


@pytest.fixture
def processor():
    return ViChaImageProcessor(size=32)


def make_pixels(height=50, width=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)


def pixel_values(processor, image, **options):
    return processor(image, return_tensors="pt", **options)["pixel_values"]


@pytest.mark.parametrize("shape", [(50, 40), (20, 90), (32, 32)])
def test_equals_pillow_and_numpy(shape):
    image = Image.fromarray(make_pixels(*shape))
    actual = pixel_values(ViChaImageProcessor(size={"height": 48, "width": 64}), image)
    resized = np.asarray(image.resize((64, 48), Image.Resampling.BICUBIC)).astype(np.float64)
    expected = ((resized / 255 - MEAN) / STD).transpose(2, 0, 1)
    assert actual.shape == (1, 3, 48, 64) and actual.dtype == torch.float32
    np.testing.assert_allclose(actual[0].numpy(), expected, rtol=0, atol=2e-6)


def test_defaults_are_the_published_ones():
    processor = ViChaImageProcessor()
    assert (processor.size["height"], processor.size["width"]) == (256, 256)
    assert processor.resample == Image.Resampling.BICUBIC
    assert list(processor.image_mean) == MEAN and list(processor.image_std) == STD
    assert pixel_values(processor, Image.new("RGB", (10, 20))).shape == (1, 3, 256, 256)


def test_all_kinds_of_input_agree(processor, tmp_path):
    pixels = make_pixels()
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    expected = pixel_values(processor, image)
    for same in (
        pixels,
        pixels.transpose(2, 0, 1),
        pixels.astype(np.int64),
        pixels.astype(np.float32) / 255,
        pixels / 255,
        torch.from_numpy(pixels),
        torch.from_numpy(pixels).permute(2, 0, 1),
        torch.from_numpy(pixels).permute(2, 0, 1) / 255,
        str(tmp_path / "image.png"),
        tmp_path / "image.png",
    ):
        assert torch.equal(pixel_values(processor, same), expected)
        assert torch.equal(pixel_values(processor, [same, image]), expected.repeat(2, 1, 1, 1))


def test_batches_as_one_array(processor):
    pixels = np.stack([make_pixels(seed=seed) for seed in range(3)])
    expected = pixel_values(processor, list(pixels))
    assert expected.shape == (3, 3, 32, 32)
    assert torch.equal(pixel_values(processor, pixels), expected)
    assert torch.equal(pixel_values(processor, torch.from_numpy(pixels).permute(0, 3, 1, 2)), expected)
    assert processor(list(pixels), return_tensors="np")["pixel_values"].dtype == np.float32


def test_grayscale(processor):
    gray = make_pixels()[:, :, 0]
    expected = pixel_values(processor, np.stack([gray] * 3, axis=-1))
    for same in (Image.fromarray(gray), gray, gray[:, :, None], gray[None], torch.from_numpy(gray), gray / 255):
        assert torch.equal(pixel_values(processor, same), expected)
        assert torch.equal(pixel_values(processor, [same]), expected)


def test_sixteen_bit_grayscale_keeps_its_contrast(processor, tmp_path):
    gray = make_pixels()[:, :, 0]
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert torch.equal(pixel_values(processor, tmp_path / "deep.png"), pixel_values(processor, gray))


def test_transparency_is_put_on_white(processor, tmp_path):
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 255))
    image.paste((0, 255, 0, 0), (0, 0, 20, 10))
    image.save(tmp_path / "transparent.png")
    composed = Image.new("RGB", (20, 20), (255, 0, 0))
    composed.paste("white", (0, 0, 20, 10))
    expected = pixel_values(processor, composed)
    for same in (image, np.asarray(image), np.asarray(image) / 255, tmp_path / "transparent.png"):
        assert torch.equal(pixel_values(processor, same), expected)


def test_palette(processor):
    image = Image.fromarray(make_pixels()).quantize(16)
    assert torch.equal(pixel_values(processor, image), pixel_values(processor, image.convert("RGB")))
    # Where a palette colour is transparent, white shows.
    red = Image.new("P", (8, 8), 0)
    red.putpalette([255, 0, 0, 0, 0, 255])
    red.info["transparency"] = 0
    assert torch.equal(pixel_values(processor, red), pixel_values(processor, Image.new("RGB", (8, 8), "white")))


def test_exif_orientation_is_applied(processor, tmp_path):
    image = Image.fromarray(make_pixels())
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    opened = Image.open(tmp_path / "turned.png")
    expected = pixel_values(processor, image.transpose(Image.Transpose.ROTATE_270))
    assert torch.equal(pixel_values(processor, opened), expected)
    assert torch.equal(pixel_values(processor, tmp_path / "turned.png"), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("RGB", (6, 4), "red").convert(mode)
    assert (to_upright_rgb(image).mode, to_upright_rgb(image).size) == ("RGB", (6, 4))


def test_upright_image_is_not_changed():
    image = Image.fromarray(make_pixels())
    assert to_upright_rgb(image).tobytes() == image.tobytes()
    turned = image.copy()
    turned.getexif()[0x0112] = 3
    assert to_upright_rgb(turned).tobytes() == ImageOps.flip(ImageOps.mirror(image)).tobytes()


def test_steps_can_be_left_out(processor):
    pixels = make_pixels()
    raw = pixel_values(processor, pixels, do_resize=False, do_rescale=False, do_normalize=False)
    assert torch.equal(raw[0], torch.from_numpy(pixels).permute(2, 0, 1))
    floats = np.random.default_rng(0).normal(size=(32, 32, 3)).astype(np.float32)
    final = pixel_values(processor, floats, do_resize=False, do_rescale=False, do_normalize=False)
    assert torch.equal(final[0], torch.from_numpy(floats).permute(2, 0, 1))
    assert pixel_values(processor, pixels, size=16).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.full((8, 8, 3), 256), r"int64 with values 256 .. 256 has an unknown scale: pass integers in 0 .. 255"),
        (np.full((8, 8, 3), -0.5), "unknown scale"),
        (np.full((8, 8, 3), 200.0), "unknown scale"),
        (np.full((8, 8, 3), np.nan), "unknown scale"),
        (np.zeros((8, 8, 5), dtype=np.uint8), r"C = 1, 3 or 4, got shape \(8, 8, 5\)"),
        (np.zeros((0, 8, 3), dtype=np.uint8), r"shape \(0, 8, 3\) has no pixels"),
        (Image.new("F", (8, 8)), "mode 'F' has no known value range"),
        (Image.new("RGB", (0, 8)), "no pixels"),
        ([], "the list of images is empty"),
    ],
)
def test_bad_images(processor, image, expected):
    with pytest.raises(ValueError, match=expected):
        processor(image)


def test_not_an_image(processor, tmp_path):
    with pytest.raises(TypeError, match=r"an image is a Pillow image, .* got int"):
        processor(3)
    with pytest.raises(ValueError, match=r"not found: .*none\.png"):
        processor(tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"none\.png"):
        processor("none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(OSError, match=r"text\.png"):
        processor(tmp_path / "text.png")


@pytest.mark.parametrize("size", [{"shortest_edge": 32}, {"height": 0, "width": 32}, -3])
def test_bad_size(size):
    with pytest.raises(ValueError, match="size="):
        ViChaImageProcessor(size=size)


def test_save_and_load(tmp_path):
    processor = ViChaImageProcessor(size=24, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.1])
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "image_processing_vicha.py").is_file()
    image = Image.fromarray(make_pixels())
    for loaded in (ViChaImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is ViChaImageProcessor
        assert torch.equal(pixel_values(loaded, image), pixel_values(processor, image))
    assert ViChaImageProcessor.from_pretrained(tmp_path, size=16).size["height"] == 16


@pytest.mark.parametrize("content", ["truncated", "text", "empty", "folder", "missing", "unknown values"])
@pytest.mark.parametrize("as_path", [str, Path])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, as_path):
    path = tmp_path / "broken.tiff"
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "JPEG")
    if content == "folder":
        path.mkdir()
    elif content == "unknown values":
        Image.fromarray(np.zeros((8, 8), np.float32)).save(path)
    elif content != "missing":
        path.write_bytes({"truncated": whole.getvalue()[:400], "text": b"<html>", "empty": b""}[content])
    with pytest.raises((ValueError, OSError), match=re.escape(str(path))):
        ViChaImageProcessor()([as_path(path)])


def test_a_url_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:9/dog\.jpg is no image file, URL"):
        ViChaImageProcessor()("http://127.0.0.1:9/dog.jpg")
