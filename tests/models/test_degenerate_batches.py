"""Batches that leave an objective with little or nothing to do still give finite losses and gradients."""

import pytest
import torch
from tiny_models import (
    CLS,
    SEP,
    fill_queue,
    gradients,
    tiny_batch,
    tiny_config,
    tiny_pretraining_model,
    tiny_retrieval_model,
)

from vicha_hf.models.inputs import Texts
from vicha_hf.models.objective_mlm import mask_texts


def one_sample(model):
    return tiny_batch(1) | {"image_ids": torch.tensor([5])}


def one_image(model):
    batch = tiny_batch(4)
    batch["pixel_values"] = batch["pixel_values"][:1].expand(4, -1, -1, -1)
    return batch | {"image_ids": torch.tensor([5, 5, 5, 5])}


def empty_captions(model):
    batch = tiny_batch(3)
    batch["input_ids"] = torch.full((3, 1), CLS)
    return batch | {"attention_mask": torch.ones(3, 1, dtype=torch.long)}


def batch_beyond_the_queue(model):
    return tiny_batch(model.config.queue_size + 3)


def no_concepts(model):
    return tiny_batch(3, concepts=False)


def everything_at_once(model):
    batch = tiny_batch(1, concepts=False)
    return batch | {"input_ids": torch.tensor([[CLS]]), "attention_mask": torch.tensor([[1]])}


BATCHES = [one_sample, one_image, empty_captions, batch_beyond_the_queue, no_concepts, everything_at_once]


@pytest.mark.parametrize("queue", ["empty", "partly filled", "none"])
@pytest.mark.parametrize("make_batch", BATCHES)
@pytest.mark.parametrize("builder", [tiny_pretraining_model, tiny_retrieval_model])
def test_losses_and_gradients_are_finite(builder, make_batch, queue):
    fields = {"mim_mode": "both"} if builder is tiny_pretraining_model else {}
    model = builder(queue_size=0 if queue == "none" else 6, **fields).train()
    model.add_training_state()
    if queue == "partly filled":
        fill_queue(model, 4, image_ids=[5, 9, 5, 9])
    for step in range(2):
        torch.manual_seed(step)
        model.zero_grad()
        output = model(**make_batch(model))
        output.loss.backward()
        losses = {name: value.item() for name, value in output.items() if name.endswith("loss")}
        assert len(losses) == (6 if builder is tiny_pretraining_model else 3)
        assert all(torch.isfinite(torch.tensor(value)) for value in losses.values()), losses
        broken = [name for name, gradient in gradients(model).items() if not gradient.isfinite().all()]
        assert not broken, broken


@pytest.mark.parametrize("make_batch", [one_sample, one_image])
def test_without_a_negative_only_the_pair_itself_is_matched(make_batch):
    model = tiny_pretraining_model()
    with torch.no_grad():
        output = model(**make_batch(model))
    batch_size = len(output.itm_logits) // 3
    expected = -output.itm_logits[:batch_size].log_softmax(dim=1)[:, 1].mean()
    torch.testing.assert_close(output.itm_loss, expected)


def test_one_row_without_a_negative_beside_rows_that_have_one():
    """Three pairs of one image and one of another: every row has a negative; without the other, none has."""
    model, batch = tiny_pretraining_model(), tiny_batch(4)
    with torch.no_grad():
        output = model(**batch, image_ids=torch.tensor([5, 5, 5, 6]))
    labels = torch.tensor([1] * 4 + [0] * 8)
    expected = torch.nn.functional.cross_entropy(output.itm_logits, labels)
    torch.testing.assert_close(output.itm_loss, expected)


def test_a_caption_with_nothing_to_predict_costs_nothing():
    model = tiny_pretraining_model().train()
    batch = tiny_batch(2)
    labels = torch.full_like(batch["input_ids"], -100)
    output = model(**batch, mlm_input_ids=batch["input_ids"], mlm_labels=labels)
    output.mlm_loss.backward()
    assert output.mlm_loss.item() == 0.0
    assert all((gradient == 0).all() for gradient in gradients(model).values())


def test_a_caption_of_special_tokens_may_lose_its_sep_but_never_its_cls():
    ids = torch.tensor([[CLS, SEP]]).expand(50, -1)
    torch.manual_seed(0)
    masked, labels = mask_texts(Texts(ids).masked(), tiny_config(mlm_probability=0.9))
    assert (masked[:, 0] == CLS).all() and (labels[:, 0] == -100).all()
    assert (labels[:, 1] == SEP).any()


def test_a_lone_sample_has_no_contrast_to_lose():
    model = tiny_pretraining_model()
    with torch.no_grad():
        output = model(**tiny_batch(1))
    assert output.itc_loss.item() == 0 and output.hierarchical_itc_loss.item() == 0
