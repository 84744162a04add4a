"""Visual tokenizers: the same interface, grids that fit the patches, codes that say something about the image."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig
from transformers.models.flava.image_processing_pil_flava import FlavaImageProcessorPil

from vicha_hf.models.image_processing_vicha import ViChaImageProcessor
from vicha_hf.models.objective_image_token_reconstruction import require_fitting_tokenizer
from vicha_hf.visual_tokens.codebook import CodebookVisualTokenizer
from vicha_hf.visual_tokens.configuration import CodebookVisualTokenizerConfig, PatchVisualTokenizerConfig
from vicha_hf.visual_tokens.loading import load_visual_tokenizer
from vicha_hf.visual_tokens.patches import PatchVisualTokenizer, kmeans, nearest_codes


def as_pillow(pixel_values: torch.Tensor) -> Image.Image:
    processor = ViChaImageProcessor()
    mean, std = (torch.tensor(value).reshape(3, 1, 1) for value in (processor.image_mean, processor.image_std))
    colors = (pixel_values * std + mean).clamp(0, 1)
    return Image.fromarray((255 * colors).round().byte().permute(1, 2, 0).numpy())


def tiny_codebook() -> FlavaImageCodebook:
    torch.manual_seed(0)
    config = FlavaImageCodebookConfig(hidden_size=4, vocab_size=64, num_blocks_per_group=1)
    codebook = FlavaImageCodebook(config)
    # The published initialisation (0.02) gives every place the same code.
    for parameter in codebook.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return codebook


@pytest.fixture(params=["codebook", "patches"])
def tokenizer(request):
    if request.param == "codebook":
        return CodebookVisualTokenizer.from_codebook(tiny_codebook(), patch_size=16)
    return PatchVisualTokenizer(PatchVisualTokenizerConfig(patch_size=16, vocab_size=64))


def random_images(*shape) -> torch.Tensor:
    """Smooth random images, normalised."""
    coarse = torch.rand(*shape[:2], 6, 6, generator=torch.Generator().manual_seed(1))
    colors = torch.nn.functional.interpolate(coarse, shape[2:], mode="bicubic").clamp(0, 1)
    processor = ViChaImageProcessor()
    mean, std = (torch.tensor(value).reshape(1, 3, 1, 1) for value in (processor.image_mean, processor.image_std))
    return (colors - mean) / std


def test_one_token_for_each_patch(tokenizer):
    ids = tokenizer(random_images(3, 3, 256, 256))
    assert ids.shape == (3, 256)
    assert ids.dtype == torch.int64
    assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size == 64
    assert len(ids.unique()) > 5


def test_pixels_beyond_the_last_patch_are_unused(tokenizer):
    images = random_images(2, 3, 92, 75)
    assert tokenizer.grid_size(92, 75) == (5, 4)
    torch.testing.assert_close(tokenizer(images), tokenizer(images[:, :, :80, :64]))
    changed = images.clone()
    changed[:, :, 80:] = 0
    changed[:, :, :, 64:] = 0
    torch.testing.assert_close(tokenizer(changed), tokenizer(images))


def test_tokens_are_where_the_patches_are(tokenizer):
    """A change inside one patch reaches that patch's token; a codebook's convolutions also look at neighbours."""
    images = random_images(1, 3, 256, 256)
    changed = images.clone()
    changed[:, :, 2 * 16 : 3 * 16, 13 * 16 : 14 * 16] = torch.tensor([1.8, -1.5, 1.0]).reshape(3, 1, 1)
    differing = (tokenizer(images) != tokenizer(changed)).reshape(16, 16)
    if isinstance(tokenizer, PatchVisualTokenizer):
        assert differing.nonzero().tolist() == [[2, 13]]
    assert differing.any()
    assert not differing[12:].any() and not differing[:, :3].any()


def test_saved_folder_loads_as_it_was(tokenizer, tmp_path):
    images = random_images(2, 3, 64, 64)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = load_visual_tokenizer(str(tmp_path))
    assert type(loaded) is type(tokenizer)
    assert loaded.patch_size == 16
    torch.testing.assert_close(loaded.image_std, tokenizer.image_std)
    assert torch.equal(loaded(images), tokenizer(images))
    again = type(tokenizer).from_pretrained(tmp_path)
    assert torch.equal(again(images), tokenizer(images))
    with pytest.raises(ValueError, match="one token per 16 pixels, not per patch_size=8"):
        load_visual_tokenizer(str(tmp_path), patch_size=8)


def test_frozen(tokenizer):
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    tokenizer.train()
    assert not any(module.training for module in tokenizer.modules())
    images = random_images(1, 3, 32, 32).requires_grad_()
    assert not tokenizer(images).requires_grad


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 64)])
def test_pixel_values_of_another_shape(tokenizer, shape):
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        tokenizer(torch.zeros(shape))


def test_an_image_smaller_than_a_patch(tokenizer):
    with pytest.raises(ValueError, match="8 x 40 pixels is smaller than one token of patch_size=16"):
        tokenizer(torch.zeros(1, 3, 8, 40))


class TestFit:
    def test_what_fits(self, tokenizer):
        require_fitting_tokenizer(
            tokenizer, image_size=256, patch_size=16, vocab_size=64, image_processor=ViChaImageProcessor()
        )
        # The pixels beyond the last patch are nobody's: 23 x 23 of both.
        require_fitting_tokenizer(tokenizer, image_size=380, patch_size=16)

    def test_another_grid(self, tokenizer):
        with pytest.raises(ValueError, match=r"16 x 16 tokens .*256 x 256 pixels.* 32 x 32 patches"):
            require_fitting_tokenizer(tokenizer, image_size=256, patch_size=8)

    def test_another_number_of_codes(self, tokenizer):
        with pytest.raises(ValueError, match="has 64 codes, but the model predicts 8192"):
            require_fitting_tokenizer(tokenizer, image_size=256, patch_size=16, vocab_size=8192)

    def test_another_normalisation(self, tokenizer):
        processor = ViChaImageProcessor(image_mean=[0.5, 0.5, 0.5])
        with pytest.raises(ValueError, match=r"image_mean=.*uses \[0.5, 0.5, 0.5\]"):
            require_fitting_tokenizer(tokenizer, image_size=256, patch_size=16, image_processor=processor)


class TestCodebook:
    def test_equals_the_codebook_on_flavas_own_pixels(self):
        """An image of 128 pixels in patches of 8 needs no resizing: the pixel mapping alone is compared."""
        codebook = tiny_codebook()
        image = as_pillow(random_images(1, 3, 128, 128)[0])
        flava = FlavaImageProcessorPil(
            codebook_size={"height": 128, "width": 128}, codebook_crop_size={"height": 128, "width": 128}
        )
        pixels = flava(image, return_codebook_pixels=True, return_tensors="pt")["codebook_pixel_values"]
        expected = codebook.get_codebook_indices(pixels)
        tokenizer = CodebookVisualTokenizer.from_codebook(codebook, patch_size=8)
        ours = ViChaImageProcessor(size=128)(image, return_tensors="pt")["pixel_values"]
        observed = tokenizer(ours).reshape(1, 16, 16)
        assert len(expected.unique()) > 5
        assert (observed == expected).float().mean() > 0.99

    def test_half_size_is_what_pillow_makes_of_it(self, monkeypatch):
        tokenizer = CodebookVisualTokenizer.from_codebook(tiny_codebook(), patch_size=16)
        seen = []
        monkeypatch.setattr(
            tokenizer.codebook,
            "get_codebook_indices",
            lambda pixels: seen.append(pixels) or torch.zeros(len(pixels), 16, 16, dtype=torch.int64),
        )
        image = as_pillow(random_images(1, 3, 256, 256)[0])
        tokenizer(ViChaImageProcessor(size=256)(image, return_tensors="pt")["pixel_values"])
        half = image.resize((128, 128), Image.BICUBIC)
        expected = torch.from_numpy(np.array(half)).permute(2, 0, 1)[None] / 255 * 0.8 + 0.1
        assert seen[0].shape == (1, 3, 128, 128)
        # Pillow rounds to 8 bits.
        torch.testing.assert_close(seen[0], expected, atol=0.006, rtol=0)

    def test_a_codebook_folder_loads(self, tmp_path):
        codebook = tiny_codebook()
        codebook.save_pretrained(tmp_path)
        images = random_images(1, 3, 64, 64)
        expected = CodebookVisualTokenizer.from_codebook(codebook, patch_size=8)(images)
        assert torch.equal(load_visual_tokenizer(str(tmp_path), patch_size=8)(images), expected)
        assert load_visual_tokenizer(str(tmp_path)).patch_size == 16

    def test_dalles_codes_are_the_default(self):
        config = CodebookVisualTokenizerConfig()
        assert (config.vocab_size, config.patch_size, config.codebook_config.hidden_size) == (8192, 16, 256)


class TestPatches:
    def test_nearest_code_by_loop(self):
        tokenizer = PatchVisualTokenizer(PatchVisualTokenizerConfig(patch_size=8, vocab_size=20, code_size=2))
        images = random_images(2, 3, 24, 16)
        ids = tokenizer(images)
        for image in range(2):
            for row in range(3):
                for column in range(2):
                    patch = images[image, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                    raster = torch.stack(
                        [patch[:, y : y + 4, x : x + 4].mean(dim=(1, 2)) for y in (0, 4) for x in (0, 4)]
                    ).flatten()
                    distances = [(raster - code).square().sum().item() for code in tokenizer.codes]
                    assert ids[image, 2 * row + column] == distances.index(min(distances))

    def test_reconstruction_is_nearest_in_pixels(self):
        """An image made of codes is its own reconstruction."""
        tokenizer = PatchVisualTokenizer(PatchVisualTokenizerConfig(patch_size=8, vocab_size=20))
        ids = torch.randint(20, (3, 15))
        images = tokenizer.reconstruct(ids, (3, 5))
        assert images.shape == (3, 3, 24, 40)
        assert torch.equal(tokenizer(images), ids)

    def test_a_fit_keeps_more_of_the_images_and_uses_more_codes(self):
        images = random_images(64, 3, 64, 64)
        tokenizer = PatchVisualTokenizer(PatchVisualTokenizerConfig(patch_size=8, vocab_size=64))
        before = (tokenizer.reconstruct(tokenizer(images), (8, 8)) - images).square().mean()
        used_before = len(tokenizer(images).unique())
        fit = tokenizer.fit(images.split(10))
        after = (tokenizer.reconstruct(tokenizer(images), (8, 8)) - images).square().mean()
        assert after < before / 2
        assert len(tokenizer(images).unique()) == 64 > used_before
        assert fit.num_patches == 64 * 64
        assert 0.5 < fit.explained_variance < 1

    def test_a_fit_is_deterministic_and_does_not_touch_the_global_generator(self):
        images = random_images(16, 3, 64, 64)
        fitted = []
        for _ in range(2):
            tokenizer = PatchVisualTokenizer(PatchVisualTokenizerConfig(patch_size=8, vocab_size=32))
            state = torch.get_rng_state()
            tokenizer.fit(images.split(5), max_patches=500)
            assert torch.equal(torch.get_rng_state(), state)
            fitted.append(tokenizer.codes.clone())
            torch.rand(3)
        assert torch.equal(*fitted)

    def test_unfitted_codes_depend_on_the_seed_alone(self):
        first = PatchVisualTokenizer(PatchVisualTokenizerConfig())
        torch.rand(1)
        assert torch.equal(first.codes, PatchVisualTokenizer(PatchVisualTokenizerConfig()).codes)
        assert not torch.equal(first.codes, PatchVisualTokenizer(PatchVisualTokenizerConfig(seed=1)).codes)

    def test_fewer_patches_than_codes(self):
        tokenizer = PatchVisualTokenizer(PatchVisualTokenizerConfig(patch_size=8, vocab_size=32))
        with pytest.raises(ValueError, match="only 1 different patches, fewer than the 32 codes"):
            tokenizer.fit([torch.ones(4, 3, 32, 32)])
        with pytest.raises(ValueError, match="no patches"):
            tokenizer.fit([])
        with pytest.raises(ValueError, match="max_patches=31"):
            tokenizer.fit([random_images(4, 3, 32, 32)], max_patches=31)
        with pytest.raises(ValueError, match="not all finite"):
            tokenizer.fit([torch.full((4, 3, 32, 32), float("nan"))])


class TestKMeans:
    def test_finds_separated_groups(self):
        generator = torch.Generator().manual_seed(0)
        centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
        points = centres.repeat_interleave(50, dim=0) + 0.1 * torch.randn(200, 2, generator=generator)
        codes = kmeans(points, 4, 10, generator)
        indices, distances = nearest_codes(centres, codes)
        assert sorted(indices.tolist()) == [0, 1, 2, 3]
        assert distances.max() < 0.01
        means = torch.stack([points[50 * group : 50 * group + 50].mean(dim=0) for group in range(4)])
        torch.testing.assert_close(codes[indices], means)

    def test_no_code_stays_empty(self):
        generator = torch.Generator().manual_seed(3)
        points = torch.randn(300, 4, generator=generator) ** 3
        codes = kmeans(points, 60, 15, generator)
        assert len(nearest_codes(points, codes)[0].unique()) == 60


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (PatchVisualTokenizerConfig, {"patch_size": 6}, "code_size=4.*divide patch_size=6"),
        (PatchVisualTokenizerConfig, {"vocab_size": 0}, "vocab_size=0"),
        (PatchVisualTokenizerConfig, {"image_std": (1.0, 0.0, 1.0)}, "image_std"),
        (CodebookVisualTokenizerConfig, {"image_mean": (1.0,)}, "image_mean"),
        (CodebookVisualTokenizerConfig, {"patch_size": 0}, "patch_size=0"),
    ],
)
def test_impossible_configurations(config, options, words):
    with pytest.raises(StrictDataclassError, match=words):
        config(**options)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="type 'bert', not a visual tokenizer"):
        load_visual_tokenizer(str(tmp_path))
