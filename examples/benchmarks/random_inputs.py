"""Texts without meaning: in the benchmarks only what is computed counts."""

import torch


CLS, SEP, PAD, FIRST_WORD = 101, 102, 0, 1000
TEXT_TOKENS = 25


def random_texts(lengths: torch.Tensor, vocab_size: int) -> dict[str, torch.Tensor]:
    """Random words between [CLS] and [SEP], padded to the longest."""
    ids = torch.randint(FIRST_WORD, vocab_size, (len(lengths), int(lengths.max())))
    place = torch.arange(ids.shape[1])
    ids[:, 0] = CLS
    ids[place == lengths[:, None] - 1] = SEP
    mask = (place < lengths[:, None]).long()
    return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask}
