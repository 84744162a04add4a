import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_tokenizer import build_tiny_tokenizer
from transformers import AutoProcessor, pipeline

from vicha_hf import ViChaConfig, ViChaImageProcessor, ViChaModel, ViChaProcessor


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def processor(tokenizer):
    return ViChaProcessor(ViChaImageProcessor(size=32), tokenizer)


def make_image(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size=(40, 50, 3), dtype=np.uint8))


def test_images_texts_and_concepts(processor, tokenizer):
    images = [make_image(seed) for seed in range(3)]
    batch = processor(
        images=images,
        text=["a red dog", "two dogs in the snow"],
        concepts=[["dog", "grass"], [], None],
        return_tensors="pt",
    )
    assert list(batch) == processor.model_input_names
    assert torch.equal(batch["pixel_values"], processor.image_processor(images, return_tensors="pt")["pixel_values"])
    assert tokenizer.batch_decode(batch["input_ids"]) == [
        "[CLS] a red dog [SEP] [PAD] [PAD] [PAD]",
        "[CLS] two dogs in the snow [SEP]",
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0, 0], [1] * 8]
    assert tokenizer.decode(batch["concept_input_ids"][0]) == "[CLS] dog grass [SEP]"
    assert batch["concept_attention_mask"].tolist() == [[1] * 4, [0] * 4, [0] * 4]
    assert batch["concept_input_ids"][1:].unique().tolist() == [tokenizer.pad_token_id]
    assert all(batch[name].dtype == torch.int64 for name in processor.model_input_names[1:])


def test_parts_alone(processor):
    assert set(processor(images=make_image())) == {"pixel_values"}
    assert set(processor(text="a dog")) == {"input_ids", "attention_mask"}
    assert set(processor(concepts=[["dog"]])) == {"concept_input_ids", "concept_attention_mask"}
    assert processor(text="a dog", return_tensors="pt")["input_ids"].shape == (1, 4)
    # Without return_tensors: lists.
    assert processor(text=["a dog"])["attention_mask"] == [[1, 1, 1, 1]]


def test_single_image_takes_its_words_directly(processor):
    expected = processor(images=[make_image()], concepts=[["dog", "grass"]], return_tensors="pt")
    for images in (make_image(), [make_image()]):
        batch = processor(images=images, concepts=["dog", "grass"], return_tensors="pt")
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("count", "concepts"), [(1, []), (1, [[]]), (1, [None]), (2, [[], None]), (2, None)])
def test_no_concepts_at_all(processor, count, concepts):
    batch = processor(images=[make_image()] * count, concepts=concepts)
    assert set(batch) == {"pixel_values"}


def test_an_image_has_the_same_concept_ids_alone_and_in_a_batch(processor):
    alone = processor(concepts=[["dog"]], return_tensors="pt")
    batch = processor(concepts=[["dog", "cat", "snow"], ["dog"]], return_tensors="pt")
    width = alone["concept_input_ids"].shape[1]
    assert torch.equal(batch["concept_input_ids"][1, :width], alone["concept_input_ids"][0])
    assert batch["concept_attention_mask"][1].sum() == width


def test_lengths(processor):
    text, concepts = "a dog " * 40, ["dog"] * 100
    batch = processor(text=text, concepts=[concepts], return_tensors="pt")
    assert batch["input_ids"].shape == (1, 25) and batch["concept_input_ids"].shape == (1, 55)
    assert batch["input_ids"][0, -1] == processor.tokenizer.sep_token_id
    batch = processor(text=text, concepts=[concepts], max_text_length=6, max_concept_length=9, return_tensors="pt")
    assert batch["input_ids"].shape == (1, 6) and batch["concept_input_ids"].shape == (1, 9)
    batch = processor(text=text, concepts=[concepts], truncation=False, return_tensors="pt")
    assert batch["input_ids"].shape == (1, 82) and batch["concept_input_ids"].shape == (1, 102)
    batch = processor(text="a dog", concepts=[["dog"], []], padding="max_length", return_tensors="pt")
    assert batch["input_ids"].shape == (1, 25) and batch["concept_input_ids"].shape == (2, 55)
    batch = processor(text=["a", "a dog"], concepts=[["dog"], [], ["dog", "cat"]], padding=False)
    assert [len(row) for row in batch["input_ids"]] == [3, 4]
    assert [len(row) for row in batch["concept_attention_mask"]] == [3, 0, 4]


def test_padding_stands_on_the_right_whatever_the_tokenizer_says(tmp_path):
    tokenizer = build_tiny_tokenizer(tmp_path)
    tokenizer.padding_side = "left"
    batch = ViChaProcessor(ViChaImageProcessor(), tokenizer)(text=["a", "a dog"], return_tensors="pt")
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_concept_separator(tokenizer):
    processor = ViChaProcessor(ViChaImageProcessor(), tokenizer, concept_separator=" [SEP] ")
    ids = processor(concepts=[["dog", "cat"]])["concept_input_ids"]
    assert tokenizer.batch_decode(ids) == ["[CLS] dog [SEP] cat [SEP]"]


def test_image_options_of_one_call(processor):
    assert processor(images=make_image(), size=16, return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 16)


def test_decoding(processor):
    ids = processor(text=["a red dog", "snow"])["input_ids"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["a red dog", "snow"]
    assert processor.decode(ids[1], skip_special_tokens=True) == "snow"


@pytest.mark.parametrize(
    ("arguments", "error", "expected"),
    [
        ({}, ValueError, "at least one of images, text and concepts"),
        ({"text": 3}, TypeError, "text must be a str or a list of str, got int"),
        ({"text": ["a", None]}, TypeError, "text 1 must be a str, got NoneType"),
        ({"text": []}, ValueError, "the list of texts is empty"),
        ({"images": [make_image()] * 2, "concepts": [["dog"]]}, ValueError, "2 images but 1 lists of concepts"),
        ({"images": [make_image()] * 2, "concepts": []}, ValueError, "2 images but 0 lists of concepts"),
        ({"images": make_image(), "concepts": [["dog"], ["cat"]]}, ValueError, "1 images but 2 lists of concepts"),
        (
            {"images": [make_image()] * 2, "concepts": ["dog", "cat"]},
            TypeError,
            "of image 0 must be a list of words",
        ),
        ({"images": make_image(), "concepts": "dog"}, TypeError, "one list of words per image, got str: 'dog'"),
        ({"concepts": ["dog"]}, TypeError, "of image 0 must be a list of words or None, got str: 'dog'"),
        ({"concepts": [["dog"], [3]]}, TypeError, "a concept of image 1 must be a non-blank str, got 3"),
        ({"concepts": [["dog", " "]]}, TypeError, "a concept of image 0 must be a non-blank str, got ' '"),
        ({"text": "a dog", "max_length": 5, "max_text_length": 5}, TypeError, "are one option"),
        ({"text": "a dog", "max_length": 2}, ValueError, "max_length=2 must be an int of at least 3"),
        ({"text": "a dog", "text_kwargs": {"colour": 1}}, TypeError, "text_kwargs has no option 'colour'"),
        ({"text": "a dog", "images_kwargs": {"padding": 1}}, TypeError, "images_kwargs has no option 'padding'"),
        ({"text": "a", "padding": False, "text_kwargs": {"padding": True}}, TypeError, "'padding' is given twice"),
        ({"text": "a dog", "padding_side": "left"}, ValueError, "pad on the right"),
        ({"concepts": [["dog", "\u200b"]]}, TypeError, "a concept of image 0 must be a non-blank str"),
        ({"text": "a dog", "max_text_length": 2}, ValueError, "max_text_length=2 must be an int of at least 3"),
        ({"images": make_image(), "colour": 1}, TypeError, "unknown option 'colour'"),
        ({"text": "a dog", "do_resize": False}, TypeError, r"\['do_resize'\] need images"),
    ],
)
def test_bad_calls(processor, arguments, error, expected):
    with pytest.raises(error, match=expected):
        processor(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_text_length": 2}, ValueError),
        ({"max_text_length": "25"}, ValueError),
        ({"max_concept_length": True}, ValueError),
        ({"concept_separator": ""}, TypeError),
        ({"concept_separator": None}, TypeError),
        ({"text_cleaning": "answer"}, ValueError),
        ({"max_words": 0}, ValueError),
        ({"nonsense": 1}, TypeError),
    ],
)
def test_bad_settings(tokenizer, arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        ViChaProcessor(ViChaImageProcessor(), tokenizer, **arguments)


def test_swapped_and_missing_parts(tokenizer):
    with pytest.raises(TypeError, match="image_processor"):
        ViChaProcessor(tokenizer, ViChaImageProcessor())
    with pytest.raises(TypeError, match="tokenizer"):
        ViChaProcessor(ViChaImageProcessor())


def test_tokenizer_without_padding_token(tmp_path):
    tokenizer = build_tiny_tokenizer(tmp_path)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        ViChaProcessor(ViChaImageProcessor(), tokenizer)


def test_save_and_load(tokenizer, tmp_path):
    processor = ViChaProcessor(
        ViChaImageProcessor(size=16), tokenizer, max_text_length=7, max_concept_length=9, concept_separator=" [SEP] "
    )
    processor.save_pretrained(tmp_path)
    arguments = {"images": make_image(), "text": "a red dog in the snow " * 3, "concepts": ["dog", "snow"] * 4}
    expected = processor(**arguments, return_tensors="pt")
    for loaded in (ViChaProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is ViChaProcessor
        assert (loaded.max_text_length, loaded.max_concept_length, loaded.concept_separator) == (7, 9, " [SEP] ")
        batch = loaded(**arguments, return_tensors="pt")
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert ViChaProcessor.from_pretrained(tmp_path, max_text_length=12).max_text_length == 12


def test_loads_where_the_package_is_not_installed(processor, tmp_path):
    processor.save_pretrained(tmp_path / "saved")
    script = """
import sys
sys.modules["vicha_hf"] = None  # importing it is an error from here on
import torch
from transformers import AutoImageProcessor, AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(processor).__module__.startswith("transformers_modules."), type(processor)
assert type(AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__ == "ViChaImageProcessor"
batch = processor(torch.zeros(3, 8, 8), text="a dog", concepts=["dog", "grass"], return_tensors="pt")
assert batch["pixel_values"].shape == (1, 3, 32, 32) and batch["concept_input_ids"].shape == (1, 4)
processor.save_pretrained(sys.argv[2])
"""
    command = [sys.executable, "-c", script, str(tmp_path / "saved"), str(tmp_path / "again")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    assert {"processing_vicha.py", "image_processing_vicha.py"} <= {
        file.name for file in (tmp_path / "again").iterdir()
    }


def test_zero_shot_pipeline(processor):
    config = ViChaConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
        },
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "fusion_layer": 1,
            "pad_token_id": 0,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "mask_token_id": 4,
        },
        projection_dim=8,
        num_concept_layers=1,
        hierarchical_itc_weight=0.0,
    )
    torch.manual_seed(0)
    model = ViChaModel(config).eval()
    classify = pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
    )
    labels = ["dog", "cat", "red car"]
    result = classify(make_image(), candidate_labels=labels, hypothesis_template="a photo of {}")
    with torch.no_grad():
        inputs = processor(images=make_image(), text=[f"a photo of {label}" for label in labels], return_tensors="pt")
        expected = model(**inputs).logits_per_image[0].softmax(dim=-1)
    assert {entry["label"]: entry["score"] for entry in result} == pytest.approx(
        dict(zip(labels, expected.tolist(), strict=True)), abs=1e-6
    )


def test_without_final_sep_as_the_published_models_were_trained(tokenizer, tmp_path):
    processor = ViChaProcessor(ViChaImageProcessor(size=32), tokenizer, final_sep=False, max_text_length=5)
    batch = processor(
        text=["a dog", "two dogs in the snow"], concepts=[["dog", "grass"], []], padding=True, return_tensors="pt"
    )
    assert tokenizer.batch_decode(batch["input_ids"]) == ["[CLS] a dog [PAD] [PAD]", "[CLS] two dogs in"]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert tokenizer.decode(batch["concept_input_ids"][0]) == "[CLS] dog grass"
    assert batch["concept_attention_mask"].tolist() == [[1] * 3, [0] * 3]
    assert processor(text="a dog", padding="max_length")["attention_mask"] == [[1, 1, 1, 0, 0]]
    assert processor(text=["a dog", "a"], padding=False)["input_ids"] == [
        [tokenizer.cls_token_id, *tokenizer("a dog", add_special_tokens=False)["input_ids"]],
        [tokenizer.cls_token_id, *tokenizer("a", add_special_tokens=False)["input_ids"]],
    ]
    processor.save_pretrained(tmp_path)
    assert ViChaProcessor.from_pretrained(tmp_path).final_sep is False
