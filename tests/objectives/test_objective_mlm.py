"""Masking of tokens and the masked-language loss."""

import pytest
import torch

from vicha_hf.models.objective_mlm import IGNORED, MaskedLanguageModeling, mask_tokens


VOCABULARY, MASK, CLS = 1000, 4, 2


def draw(probability=0.15, rows=400, length=50):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
    ids[:, 0] = CLS
    mask = torch.ones_like(ids)
    mask[:, length - 10 :] = 0
    ids[mask == 0] = 0
    torch.manual_seed(0)
    masked, labels = mask_tokens(ids, mask, probability, MASK, CLS, VOCABULARY)
    return ids, mask, masked, labels


@pytest.mark.parametrize("probability", [0.15, 0.5])
def test_rates_of_prediction_and_replacement(probability):
    ids, mask, masked, labels = draw(probability)
    eligible = mask.bool() & (ids != CLS)
    predicted = labels != IGNORED
    # 15,600 eligible tokens; the bounds are four standard deviations of each share.
    assert predicted[eligible].float().mean().item() == pytest.approx(probability, abs=0.017)
    replaced = masked[predicted] == MASK
    kept = masked[predicted] == ids[predicted]
    assert replaced.float().mean().item() == pytest.approx(0.8, abs=0.035)
    assert kept.float().mean().item() == pytest.approx(0.1, abs=0.027)
    other = masked[predicted][~replaced & ~kept]
    assert len(other) / int(predicted.sum()) == pytest.approx(0.1, abs=0.027)
    assert other.min() < 0.1 * VOCABULARY and other.max() > 0.9 * VOCABULARY


def test_padding_and_cls_are_never_predicted_and_the_rest_stays():
    ids, mask, masked, labels = draw(0.9)
    predicted = labels != IGNORED
    assert not predicted[mask == 0].any() and not predicted[ids == CLS].any()
    assert torch.equal(masked[~predicted], ids[~predicted])
    assert torch.equal(labels[predicted], ids[predicted])
    assert predicted[:, 39].any() and predicted[:, 1].any()


def test_the_input_is_not_changed_and_a_boolean_mask_serves():
    ids, mask, masked, labels = draw()
    torch.manual_seed(0)
    before = ids.clone()
    again = mask_tokens(ids, mask.bool(), 0.15, MASK, CLS, VOCABULARY)
    assert torch.equal(ids, before)
    assert torch.equal(again[0], masked) and torch.equal(again[1], labels)


def loop_loss(logits, teacher_logits, labels, alpha):
    total = 0.0
    for row in range(len(labels)):
        log_probabilities = logits[row].double().log_softmax(dim=0)
        teacher = teacher_logits[row].double().softmax(dim=0)
        hard = -log_probabilities[labels[row]].item()
        soft = -sum(teacher[word].item() * log_probabilities[word].item() for word in range(logits.shape[1]))
        total += (1 - alpha) * hard + alpha * soft
    return total / len(labels)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_loss_equals_a_loop(alpha):
    generator = torch.Generator().manual_seed(0)
    logits, teacher_logits = torch.randn(2, 7, 11, generator=generator) * 3
    labels = torch.randint(11, (7,), generator=generator)
    observed = MaskedLanguageModeling()(logits, teacher_logits, labels, alpha).loss
    assert observed.item() == pytest.approx(loop_loss(logits, teacher_logits, labels, alpha), abs=1e-5)


def test_nothing_to_predict_is_zero_with_zero_gradient():
    head = torch.nn.Linear(3, 11)
    logits = head(torch.randn(0, 3))
    loss = MaskedLanguageModeling()(logits, torch.zeros(0, 11), torch.zeros(0, dtype=torch.long), 0.4).loss
    loss.backward()
    assert loss.item() == 0.0
    assert (head.weight.grad == 0).all() and (head.bias.grad == 0).all()
