"""sentence-transformers on saved folders: images and texts become what the model's own features are."""

import numpy as np
import pytest
import torch
from hub_client import CONCEPTS, TEXTS, two_images
from sentence_transformers import SentenceTransformer
from tiny_model_folder import write_model_folder, write_simla_folder
from tiny_models import tiny_config
from transformers import AutoModel, AutoProcessor

from vicha_hf import ViChaForVQA


LONG = " ".join(["a dog and a cat on the grass"] * 20)


@pytest.fixture(scope="module", params=[write_model_folder, write_simla_folder], ids=["vicha", "simla"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    request.param(folder)
    return folder


def own_features(folder, images=None, texts=None, **options) -> np.ndarray:
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor(images=images, text=texts, return_tensors="pt", **options)
    with torch.no_grad():
        features = model.get_text_features if images is None else model.get_image_features
        return features(**inputs).pooler_output.numpy()


def test_images_and_texts_are_the_models_own_features(folder, tmp_path):
    model = SentenceTransformer(str(folder), device="cpu")
    assert model.get_embedding_dimension() == len(model.encode("a dog"))
    texts, images = model.encode([*TEXTS, LONG]), model.encode(two_images())
    np.testing.assert_allclose(texts, own_features(folder, texts=[*TEXTS, LONG]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(images, own_features(folder, two_images()), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(np.vstack([texts, images]), axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(model.similarity(images, texts).numpy(), images @ texts.T, atol=1e-5)
    # Paths are images as well.
    path = tmp_path / "first.png"
    two_images()[0].save(path)
    np.testing.assert_allclose(model.encode([str(path), two_images()[1]]), images, rtol=1e-4, atol=1e-5)
    # The library's own length option holds.
    model.max_seq_length = 5
    shortened = own_features(folder, texts=TEXTS, max_length=5)
    np.testing.assert_allclose(model.encode(TEXTS), shortened, rtol=1e-4, atol=1e-5)
    assert not np.allclose(shortened[0], texts[0], atol=1e-3)


def test_what_the_library_saves_is_whole(folder, tmp_path):
    model = SentenceTransformer(str(folder), device="cpu")
    model.save_pretrained(str(tmp_path / "copy"))
    again = SentenceTransformer(str(tmp_path / "copy"), device="cpu")
    for inputs in (TEXTS, two_images()):
        np.testing.assert_allclose(again.encode(inputs), model.encode(inputs), rtol=1e-5, atol=1e-6)
    AutoProcessor.from_pretrained(tmp_path / "copy")


def test_concepts_are_an_option_of_images(tmp_path):
    write_model_folder(tmp_path)
    model = SentenceTransformer(str(tmp_path), device="cpu")
    found = model.encode(two_images(), processing_kwargs={"image": {"concepts": CONCEPTS}})
    np.testing.assert_allclose(found, own_features(tmp_path, two_images(), concepts=CONCEPTS), rtol=1e-4, atol=1e-5)
    assert not np.allclose(found[0], model.encode(two_images())[0], atol=1e-3)


def test_code_of_the_folder_or_of_the_hub_is_enough(pushed, model_folder, repositories, tmp_path, run_client):
    write_simla_folder(tmp_path)
    remote = run_client("embed", repositories.public, tmp_path, token=None)
    for folder, embedded in zip((model_folder, tmp_path), remote, strict=True):
        assert embedded["module"].startswith("transformers_modules.")
        model = SentenceTransformer(str(folder), device="cpu")
        np.testing.assert_allclose(embedded["texts"], model.encode(TEXTS), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(embedded["images"], model.encode(two_images()), rtol=1e-5, atol=1e-5)


def test_a_head_without_projections_is_not_offered(tmp_path):
    ViChaForVQA(tiny_config()).save_pretrained(tmp_path)
    assert (tmp_path / "config.json").exists() and not (tmp_path / "modules.json").exists()
