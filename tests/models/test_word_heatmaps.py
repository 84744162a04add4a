"""Heat maps of single words: they add up to the caption's map, and can be looked at."""

import numpy as np
import pytest
import torch
from PIL import Image
from simla_models import simla_model
from tiny_models import CLS, PAD, SEP, tiny_batch
from tiny_tokenizer import build_tiny_tokenizer

from vicha_hf import SimlaForGrounding, SimlaImageProcessor, SimlaProcessor
from vicha_hf.models.image_heatmap import GAP, LINE, draw_word_heatmaps, merge_word_pieces, overlay_heatmap


def test_words_add_up_to_the_map_and_special_tokens_have_none():
    model, batch = simla_model(SimlaForGrounding), tiny_batch(3, concepts=False)
    output = model(**batch)
    ids = batch["input_ids"]
    words = ~torch.isin(ids, torch.tensor([PAD, CLS, SEP]))
    assert output.word_heatmaps.shape == (*ids.shape, 4, 4)
    assert (output.word_heatmaps[~words] == 0).all() and (output.word_heatmaps[words] != 0).any()
    mean = output.word_heatmaps.sum(dim=1) / words.sum(dim=1)[:, None, None]
    torch.testing.assert_close(mean, output.heatmaps)


def test_pieces_become_words():
    maps = np.arange(4 * 4, dtype=np.float32).reshape(4, 2, 2)
    words, merged = merge_word_pieces(["a", "play", "##ing", "dog"], torch.from_numpy(maps))
    assert words == ["a", "playing", "dog"]
    np.testing.assert_array_equal(merged, [maps[0], maps[1] + maps[2], maps[3]])
    with pytest.raises(ValueError, match="each of the 2 tokens"):
        merge_word_pieces(["a", "b"], maps)


def test_all_words_have_one_scale():
    image = Image.new("RGB", (32, 24), "white")
    maps = np.stack([np.ones((3, 3)), 0.1 * np.ones((3, 3))])
    strip = np.asarray(draw_word_heatmaps(image, ["hot", "cold"], maps))
    assert strip.shape == (24 + LINE, 3 * 32 + 2 * GAP, 3)
    panels = [strip[:24, start : start + 32] for start in (0, 32 + GAP, 2 * (32 + GAP))]
    assert (panels[0] == 255).all()
    changed = [np.abs(panel.astype(int) - 255).mean() for panel in panels]
    # On a scale of its own the second word would look like the first.
    own = np.asarray(overlay_heatmap(image, maps[1], opacity=0.7))
    assert np.abs(own.astype(int) - 255).mean() == changed[1] > changed[2] > 0
    assert (strip[24:] < 255).any()  # the words are written
    with pytest.raises(ValueError, match="one map per word"):
        draw_word_heatmaps(image, ["hot"], maps)


def test_the_processor_draws_a_captions_words(tmp_path):
    processor = SimlaProcessor(
        SimlaImageProcessor(size={"height": 32, "width": 32}), build_tiny_tokenizer(tmp_path), max_text_length=12
    )
    image = Image.new("RGB", (40, 30), "gray")
    inputs = processor(images=image, text="two dogs playing", padding="max_length", return_tensors="pt")
    output = simla_model(SimlaForGrounding)(**inputs)
    strip = processor.draw_word_heatmaps(image, inputs["input_ids"][0], output.word_heatmaps[0])
    words = 3  # "dog" + "##s" is one word
    assert strip.size == ((words + 1) * (40 + GAP) - GAP, 30 + LINE)
