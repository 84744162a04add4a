"""Arguments that a user gets wrong: an error that names the argument, before one of a tensor's shape within the model."""

import pytest
import torch
from PIL import Image
from tiny_model_folder import tiny_processor, write_model_folder
from tiny_models import tiny_config
from transformers import pipeline

from vicha_hf import ViChaForPreTraining, ViChaForRetrieval, ViChaForVQA


IDS = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
MASK = (IDS != 0).long()
PIXELS = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distillation_alpha": 2.0}, r"`distillation_alpha=2.0` is not possible: it is a share, from 0 to 1"),
        ({"mlm_input_ids": IDS[:, :2], "mlm_labels": IDS}, r"`mlm_input_ids` has shape \(2, 2\); expected \(2, 4\)"),
        ({"mlm_input_ids": IDS, "mlm_labels": IDS[:1]}, r"`mlm_labels` has shape \(1, 4\); expected \(2, 4\)"),
        ({"mim_noise": torch.zeros(2, 3)}, r"`mim_noise` has shape \(2, 3\); expected \(2, \d+\)"),
    ],
)
def test_of_pretraining(arguments, message):
    model = ViChaForPreTraining(tiny_config()).train()
    inputs = {"pixel_values": PIXELS, "input_ids": IDS, "attention_mask": MASK}
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **arguments})


def test_pixels_of_another_shape():
    model = ViChaForRetrieval(tiny_config()).eval()
    with pytest.raises(ValueError, match=r"`pixel_values` has shape \(3, 32, 32\); the model expects \[batch, 3"):
        model.encode_images(PIXELS[0])
    with pytest.raises(ValueError, match=r"\(0, 3, 32, 32\).* with an image or more"):
        model.encode_images(PIXELS[:0])


def test_what_is_ranked_is_encoded_first():
    model = ViChaForRetrieval(tiny_config()).eval()
    images, texts = model.encode_images(PIXELS), model.encode_texts(IDS, MASK)
    with pytest.raises(TypeError, match="`images` is a Tensor; give the ImageEncoding of `encode_images`"):
        model.rerank(PIXELS, texts, 2)
    with pytest.raises(TypeError, match="`images` is a TextEncoding"):
        model.rerank(texts, images, 2)
    with pytest.raises(TypeError, match="`texts` is a Tensor; give the TextEncoding of `encode_texts`"):
        model.rerank(images, IDS, 2)


def test_answers_are_tokenised_first():
    model = ViChaForVQA(tiny_config()).eval()
    with pytest.raises(TypeError, match=r"`answers` is a list; give the tokenised list: `processor.tokenize_answers"):
        model.rank_answers(PIXELS, IDS, MASK, answers=["yes", "no"])


def test_an_image_that_is_none(tmp_path):
    processor = tiny_processor(tmp_path)
    with pytest.raises(TypeError, match="ViChaImageProcessor: an image is None"):
        processor(images=[Image.new("RGB", (32, 32)), None], text=["a dog", "a cat"])


def test_zero_shot_classification(tmp_path):
    write_model_folder(tmp_path / "retrieval")
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "retrieval"))
    for labels in ("a dog, a cat", []):
        with pytest.raises(ValueError, match="`candidate_labels` must be a list of texts"):
            classify(Image.new("RGB", (32, 32)), candidate_labels=labels)
    tiny_processor(tmp_path).save_pretrained(tmp_path / "vqa")
    ViChaForVQA(tiny_config()).save_pretrained(tmp_path / "vqa")
    with pytest.raises(ValueError, match="a ViChaForVQA compares no images with texts"):
        pipeline("zero-shot-image-classification", model=str(tmp_path / "vqa"))
    ask = pipeline("visual-question-answering", model=str(tmp_path / "vqa"))
    assert "'output_modalities': ('text',)" in repr(ask)
