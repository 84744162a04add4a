"""A processor class and the folders of another family: refused as the models' classes refuse them."""

import pytest
from tiny_tokenizer import build_tiny_tokenizer
from transformers import AutoProcessor

from vicha_hf import SimlaImageProcessor, SimlaProcessor, ViChaImageProcessor, ViChaProcessor


class OwnProcessor(ViChaProcessor):
    """As a user may write it."""


def save(kind: type, folder) -> None:
    image_processor = SimlaImageProcessor if kind is SimlaProcessor else ViChaImageProcessor
    kind(image_processor(), build_tiny_tokenizer(folder)).save_pretrained(folder)


@pytest.mark.parametrize(("saved", "asked"), [(ViChaProcessor, SimlaProcessor), (SimlaProcessor, OwnProcessor)])
def test_the_folder_of_another_family_is_refused(tmp_path, saved, asked):
    """It was loaded without the options that the class does not have."""
    save(saved, tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is saved
    with pytest.raises(ValueError, match=f"{tmp_path} holds a {saved.__name__}, not a {asked.__name__}: load it with"):
        asked.from_pretrained(tmp_path)


@pytest.mark.parametrize(("saved", "asked"), [(ViChaProcessor, OwnProcessor), (OwnProcessor, ViChaProcessor)])
def test_a_class_of_ones_own_is_of_its_family(tmp_path, saved, asked):
    save(saved, tmp_path)
    assert type(asked.from_pretrained(tmp_path)) is asked
