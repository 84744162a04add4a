"""Keyword tables and attention strips: what they mark, what they refuse, and that nothing in them can break the page."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from simla_models import simla_model
from tiny_model_folder import tiny_processor
from tiny_models import spread_weights, tiny_config
from tiny_tokenizer import build_tiny_tokenizer

from vicha_hf import (
    SimlaForGrounding,
    SimlaForPreTraining,
    SimlaForRetrieval,
    SimlaImageProcessor,
    SimlaProcessor,
    ViChaForGrounding,
)
from vicha_hf.models.image_heatmap import overlay_heatmap
from vicha_hf.reporting.attention_strip import AttentionStrip, attend_words, attention_section_html
from vicha_hf.reporting.keyword_table import (
    KeywordPrediction,
    has_keyword_head,
    keyword_section_html,
    predict_keywords,
)
from vicha_hf.reporting.run_report import RunReport
from vicha_hf.reporting.task_sections import BOX_COLOURS, with_boxes


IMAGE = Image.new("RGB", (12, 12), (200, 200, 200))


def images_of(html: str) -> list[np.ndarray]:
    data = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB")) for each in data]


class TestKeywords:
    def test_words_of_concepts_are_marked_and_counted(self):
        prediction = KeywordPrediction(IMAGE, ["Red car", "tree"], [("red", 0.91), ("cat", 0.4), ("Tree", 0.053)])
        html = keyword_section_html([prediction, KeywordPrediction(IMAGE, [], [("car", 1.0)])])
        assert re.findall(r"class='word right'>(\w+)", html) == ["red", "Tree"]
        assert re.findall(r"class='word'>(\w+)", html) == ["cat", "car"]
        assert "2 of 4 words" in html
        assert all(number in html for number in ("0.91", "0.40", "0.05", "1.00"))
        assert len(images_of(html)) == 2

    def test_a_part_of_a_word_is_not_the_word(self):
        assert not KeywordPrediction(IMAGE, ["carpet"], []).is_right("car")

    def test_text_cannot_become_markup(self):
        html = keyword_section_html([KeywordPrediction(IMAGE, ["<b>"], [("<i>x", 0.5)])])
        assert "<i>x" not in html and "<b>" not in html

    def test_nothing_gives_nothing(self):
        assert keyword_section_html([]) == ""

    @pytest.mark.parametrize("probability", [-0.1, 1.2, float("nan")])
    def test_a_number_that_is_no_probability(self, probability):
        with pytest.raises(ValueError, match="probability of 'dog'"):
            KeywordPrediction(IMAGE, [], [("dog", probability)])


class TestAttention:
    def test_each_word_has_its_own_map_on_one_scale(self):
        maps = torch.zeros(3, 2, 2)
        maps[0, 0, 0] = 1.0
        maps[1, 1, 1] = 0.1
        shown = images_of(attention_section_html([AttentionStrip(IMAGE, ["a", "red", "car"], maps)]))
        plain, strong, weak, none = (image.astype(float) for image in shown)
        assert np.array_equal(plain, np.asarray(IMAGE)) and np.array_equal(none, plain)
        strong, weak = np.abs(strong - plain).sum(axis=2), np.abs(weak - plain).sum(axis=2)
        assert strong[0, 0] > strong[-1, -1] and weak[-1, -1] > weak[0, 0]
        assert strong.max() > 2 * weak.max()
        assert np.array_equal(shown[1], np.asarray(overlay_heatmap(IMAGE, maps[0], max_heat=1.0)))

    def test_words_stand_below_in_order_and_cannot_become_markup(self):
        html = attention_section_html([AttentionStrip(IMAGE, ["a", "<b>", '"'], np.ones((3, 2, 2)))])
        assert re.findall(r"<span>([^<]*)</span>", html) == ["image", "a", "&lt;b&gt;", "&quot;"]
        assert "<b>" not in html

    def test_no_attention_at_all_shows_the_plain_image(self):
        shown = images_of(attention_section_html([AttentionStrip(IMAGE, ["a"], np.zeros((1, 2, 2)))]))
        assert np.array_equal(shown[1], np.asarray(IMAGE))

    def test_nothing_gives_nothing(self):
        assert attention_section_html([]) == ""

    @pytest.mark.parametrize("shape", [(2, 4, 4), (3, 4), (3, 1, 4, 4)])
    def test_another_number_of_maps(self, shape):
        with pytest.raises(ValueError, match="one map for each of the 3 words"):
            AttentionStrip(IMAGE, ["a", "red", "car"], np.ones(shape))

    def test_nan(self):
        with pytest.raises(ValueError, match="not finite"):
            AttentionStrip(IMAGE, ["a"], torch.full((1, 2, 2), float("nan")))


def test_maps_with_a_common_largest_heat():
    weak = torch.tensor([[0.0, 0.5], [0.0, 0.0]])
    own, common = overlay_heatmap(IMAGE, weak), overlay_heatmap(IMAGE, weak, max_heat=1.0)
    change = [np.abs(np.asarray(each, dtype=float) - np.asarray(IMAGE)).max() for each in (own, common)]
    assert change[0] > change[1] > 0
    # More heat than the largest is the largest.
    hot = overlay_heatmap(IMAGE, 10 * weak.clamp(max=0.1) + 9, max_heat=1.0)
    assert len(np.unique(np.asarray(hot).reshape(-1, 3), axis=0)) == 1
    with pytest.raises(ValueError, match="max_heat=0"):
        overlay_heatmap(IMAGE, weak, max_heat=0)


def test_both_boxes_of_a_right_answer_are_seen():
    white = Image.new("RGB", (60, 60), "white")
    drawn = np.asarray(with_boxes(white, {"reference": (5, 5, 40, 40), "chosen": (5, 5, 40, 40)})).reshape(-1, 3)
    seen = {tuple(map(int, colour)) for colour in np.unique(drawn, axis=0)}
    assert seen == {(255, 255, 255), *BOX_COLOURS.values()}
    # A box without room for another inside it.
    with_boxes(white, {"reference": (5, 5, 2, 1), "chosen": (5, 5, 2, 1)})


def test_sections_stand_in_the_page():
    section = keyword_section_html([KeywordPrediction(IMAGE, ["dog"], [("dog", 0.5)])])
    html = RunReport(title="t", summary="s", tiles=[], results=[], log=[], sections=[section]).to_html()
    assert section in html


def tiny_vicha() -> ViChaForGrounding:
    torch.manual_seed(0)
    model = ViChaForGrounding(tiny_config())
    spread_weights(model)
    return model.eval()


class TestFromModels:
    @pytest.fixture
    def images(self):
        generator = np.random.default_rng(0)
        return [Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(2)]

    @pytest.fixture
    def simla_processor(self, tmp_path):
        image_processor = SimlaImageProcessor(size={"height": 32, "width": 32})
        return SimlaProcessor(image_processor, build_tiny_tokenizer(tmp_path), max_text_length=12)

    def test_keywords_are_the_models_beside_what_is_shown(self, images, simla_processor):
        model = simla_model(SimlaForPreTraining)
        rows = predict_keywords(model, simla_processor, images, [["dog"], []], top_k=3)
        for image, row, shown in zip(images, rows, (["dog"], []), strict=True):
            inputs = simla_processor(images=image, return_tensors="pt")
            (expected,) = simla_processor.decode_keywords(model.predict_keywords(**inputs, top_k=3))
            assert row.image is image and row.concepts == shown
            assert [word for word, _ in row.words] == [word for word, _ in expected]
            assert [value for _, value in row.words] == pytest.approx([value for _, value in expected], abs=1e-5)

    def test_who_has_a_keyword_head(self):
        assert has_keyword_head(simla_model(SimlaForPreTraining))
        assert not has_keyword_head(simla_model(SimlaForPreTraining, psl_weight=0))
        assert not has_keyword_head(simla_model(SimlaForRetrieval))
        assert not has_keyword_head(tiny_vicha())

    def test_words_look_the_same_alone_and_beside_a_longer_caption(self, images, simla_processor):
        model, captions = simla_model(SimlaForGrounding), ["dogs", "a dog playing in the snow"]
        strips = attend_words(model, simla_processor, images, captions)
        assert [strip.words for strip in strips] == [["dogs"], captions[1].split()]
        (alone,) = attend_words(model, simla_processor, images[:1], captions[:1])
        np.testing.assert_allclose(strips[0].heatmaps, alone.heatmaps, atol=1e-6)
        assert alone.heatmaps.any()

    def test_concepts_go_in_with_the_image(self, images, tmp_path):
        model, processor = tiny_vicha(), tiny_processor(tmp_path)
        captions, concepts = ["a dog", "two dogs"], [["dog", "snow"], []]
        without = attend_words(model, processor, images, captions)
        with_concepts = attend_words(model, processor, images, captions, concepts)
        assert not np.allclose(without[0].heatmaps, with_concepts[0].heatmaps, atol=1e-9)
        np.testing.assert_allclose(without[1].heatmaps, with_concepts[1].heatmaps, atol=1e-6)

    def test_words_have_maps_where_the_model_grounds_by_similarity(self, images, simla_processor):
        model = simla_model(SimlaForGrounding)
        by_matching = attend_words(model, simla_processor, images, ["dogs", "a dog"])
        model.config.grounding_method = "itc"
        strips = attend_words(model, simla_processor, images, ["dogs", "a dog"])
        assert [strip.words for strip in strips] == [["dogs"], ["a", "dog"]]
        for strip, expected in zip(strips, by_matching, strict=True):
            np.testing.assert_array_equal(strip.heatmaps, expected.heatmaps)
