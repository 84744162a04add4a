"""One table of word embeddings for captions and concepts: in the teacher, in every head, after saving and resizing."""

import pytest
import torch
from tiny_models import VOCAB_SIZE, tiny_batch, tiny_pretraining_model

from vicha_hf import ViChaForPreTraining, ViChaForRetrieval, ViChaModel
from vicha_hf.families import HEADS, head_class
from vicha_hf.models.pretrained_encoders import require_loaded_encoders


def tables(base):
    return [part.embeddings.word_embeddings.weight for part in (base.text_model, base.concept_model)]


def is_shared(base):
    words, concepts = tables(base)
    return words is concepts


def test_both_learn_in_one_table():
    model = tiny_pretraining_model(share_word_embeddings=True)
    model.add_training_state()
    assert is_shared(model.vicha) and is_shared(model.training_state.teacher["vicha"])
    assert not is_shared(tiny_pretraining_model().vicha)
    batch = tiny_batch()
    model(**batch).loss.backward()
    gradient = tables(model.vicha)[0].grad
    only_concepts = set(batch["concept_input_ids"].flatten().tolist()) - set(batch["input_ids"].flatten().tolist())
    assert only_concepts and all(gradient[token].abs().sum() > 0 for token in only_concepts if token > 4)


def test_a_saved_folder_shares_in_every_head(tmp_path):
    model = tiny_pretraining_model(share_word_embeddings=True)
    model.add_training_state()
    for options in ({}, {"training_state": True}):
        model.save_pretrained(tmp_path, **options)
        for head in (ViChaForPreTraining, ViChaForRetrieval, ViChaModel):
            loaded, info = head.from_pretrained(tmp_path, output_loading_info=True)
            assert not info["missing_keys"]
            base = loaded if head is ViChaModel else loaded.vicha
            assert is_shared(base) and torch.equal(tables(base)[0], tables(model.vicha)[0])


def test_another_vocabulary_is_shared_too():
    model = tiny_pretraining_model(share_word_embeddings=True)
    model.resize_token_embeddings(VOCAB_SIZE + 3)
    assert is_shared(model.vicha) and len(tables(model.vicha)[1]) == VOCAB_SIZE + 3


@pytest.mark.parametrize("task", sorted(HEADS["vicha"]))
def test_every_head_starts_from_a_pretrained_folder(tmp_path, task):
    pretrained = tiny_pretraining_model(share_word_embeddings=True)
    pretrained.save_pretrained(tmp_path)
    model, info = head_class("vicha", task).from_pretrained(tmp_path, output_loading_info=True)
    require_loaded_encoders(model, info, tmp_path)
    assert is_shared(model.vicha) and torch.equal(tables(model.vicha)[1], tables(pretrained.vicha)[0])
    assert not any(".word_embeddings" in name and name.startswith("vicha.") for name in info["missing_keys"])
