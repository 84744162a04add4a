"""Texts without meaning: in the benchmarks only what is computed counts."""

import torch


CLS, SEP, PAD, FIRST_WORD = 101, 102, 0, 1000
TEXT_TOKENS = 25
SHORTEST = 8


def random_texts(lengths: torch.Tensor, vocab_size: int) -> dict[str, torch.Tensor]:
    """Random words between [CLS] and [SEP], padded to the longest."""
    ids = torch.randint(FIRST_WORD, vocab_size, (len(lengths), int(lengths.max())))
    place = torch.arange(ids.shape[1])
    ids[:, 0] = CLS
    ids[place == lengths[:, None] - 1] = SEP
    mask = (place < lengths[:, None]).long()
    return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask}


def caption_lengths(number: int, lengths: str) -> torch.Tensor:
    """
    Numbers of tokens with [CLS] and [SEP]. `"full"`: as many as fit. `"real"`: as in COCO, 8 to 25 with mean 12; the
    same for the same number of captions.
    """
    if lengths == "full":
        return torch.full((number,), TEXT_TOKENS)
    # Quantiles instead of draws, so that a small batch is typical too: most captions are short, few are long.
    quantiles = (torch.arange(number) + 0.5) / number
    return (SHORTEST - 4.2 * (1 - quantiles).log()).round().long().clamp(SHORTEST, TEXT_TOKENS)
