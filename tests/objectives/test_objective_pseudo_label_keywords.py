"""Keywords against a slow, obvious selection; targets and loss word by word."""

import math
from collections import Counter

import pytest
import torch
from simla_models import simla_config
from tiny_models import CLS, MASK, PAD, SEP, VOCAB_SIZE

from vicha_hf.models.objective_pseudo_label_keywords import PseudoLabelKeywords, select_keywords, word_positions


def obvious_keywords(attention, candidates, votes_per_head, num_keywords):
    """For one caption: positions by votes, equal ones by position."""
    votes = Counter()
    for head in attention:
        ranked = sorted((position for position in candidates), key=lambda position: (-head[position], position))
        votes.update(ranked[:votes_per_head])
    return sorted(votes, key=lambda position: (-votes[position], position))[:num_keywords], votes


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [3, 1000], ids=["many ties", "hardly a tie"])
def test_selection_equals_the_obvious_one(seed, levels):
    generator = torch.Generator().manual_seed(seed)
    heads, length = 4, 9
    attention = torch.randint(levels, (5, heads, length), generator=generator) / levels
    candidates = torch.rand(5, length, generator=generator) < torch.tensor([0.0, 0.15, 0.4, 0.8, 1.0])[:, None]
    found = select_keywords(attention, candidates, votes_per_head=3, num_keywords=4)
    for row in range(5):
        allowed = candidates[row].nonzero().flatten().tolist()
        expected, votes = obvious_keywords(attention[row].tolist(), allowed, 3, 4)
        assert found.positions[row][found.exists[row]].tolist() == expected
        assert found.votes[row].tolist() == [votes[position] for position in range(length)]


def test_equal_attention_and_equal_votes_go_to_the_earlier_position():
    even = select_keywords(torch.full((1, 2, 6), 0.1), torch.ones(1, 6, dtype=torch.bool), 2, 1)
    assert even.positions.tolist() == [[0]] and even.votes.tolist() == [[2, 2, 0, 0, 0, 0]]


def test_words_are_neither_padding_nor_special_tokens():
    ids = torch.tensor([[CLS, 9, SEP, 1, MASK, 10, PAD, 11]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]])
    words = word_positions(ids, mask, simla_config().text_config.special_token_ids)
    assert words.tolist() == [[False, True, False, False, False, True, False, False]]
    assert word_positions(ids, None, (CLS,)).sum() == 7


def keyword_head(**fields):
    torch.manual_seed(0)
    return PseudoLabelKeywords(simla_config(**fields))


IDS = torch.tensor([[CLS, 9, 10, 11, 12, SEP], [CLS, 13, 13, SEP, PAD, PAD]])
ATTENTION_MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def attention_on(*positions):
    attention = torch.full((2, 2, 6), 0.01)
    for head, chosen in enumerate(positions):
        attention[:, head, list(chosen)] = 0.5
    return attention


def test_targets_never_hold_special_tokens_or_padding():
    head = keyword_head()
    # All heads look at [CLS], [SEP] and padding most.
    attention = attention_on((0, 5), (0, 4))
    targets = head.hard_targets(head.select(attention, IDS, ATTENTION_MASK), IDS)
    assert targets[0].nonzero().flatten().tolist() == [9, 10, 12]
    # A word that stands twice is one keyword.
    assert targets[1].nonzero().flatten().tolist() == [13]
    assert set(targets.unique().tolist()) == {0.0, 1.0}


def test_the_quirk_takes_any_position_but_cls():
    head = keyword_head(reference_quirks=["psl_any_position"], psl_num_keywords=4)
    targets = head.hard_targets(head.select(attention_on((0, 5), (0, 4)), IDS, ATTENTION_MASK), IDS)
    assert targets[1].nonzero().flatten().tolist() == [PAD, 13]
    assert targets[0, CLS] == 0 and targets[0, SEP] == 1


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_loss_equals_the_obvious_one(alpha):
    head = keyword_head()
    features = torch.nn.functional.normalize(torch.randn(2, 16), dim=-1)
    teacher_logits = torch.randn(2, VOCAB_SIZE)
    attention = attention_on((1, 2), (2, 3))
    output = head(features, teacher_logits, attention, IDS, ATTENTION_MASK, alpha)
    logits, hard = head.head(features), [{1, 2, 3}, {1}]
    expected = 0.0
    for row in range(2):
        keywords = {IDS[row, position].item() for position in hard[row]}
        for word in range(VOCAB_SIZE):
            probability = 1 / (1 + math.exp(-logits[row, word].item()))
            soft = 1 / (1 + math.exp(-teacher_logits[row, word].item()))
            for share, target in ((1 - alpha, float(word in keywords)), (alpha, soft)):
                cost = -(target * math.log(probability) + (1 - target) * math.log(1 - probability))
                expected += share * cost / (2 * VOCAB_SIZE)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_teacher_gets_no_gradient_and_a_caption_without_words_is_fine():
    head = keyword_head()
    teacher_logits = torch.randn(2, VOCAB_SIZE, requires_grad=True)
    ids = torch.tensor([[CLS, SEP, PAD], [CLS, SEP, PAD]])
    output = head(torch.randn(2, 16), teacher_logits, torch.rand(2, 4, 3), ids, (ids != PAD).long(), 0.4)
    output.loss.backward()
    assert output.hard_targets.sum() == 0 and output.loss.isfinite()
    assert teacher_logits.grad is None and head.head.weight.grad.abs().sum() > 0
