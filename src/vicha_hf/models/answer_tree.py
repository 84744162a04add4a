"""A list of answers as a tree of their beginnings, so that what answers have in common is computed once."""

from dataclasses import dataclass

import torch


@dataclass
class AnswerTree:
    """
    All beginnings ("prefixes") of a list of M answers, each once, shorter ones first; prefix 0 is the start token that
    all answers share. A prefix that is longer by one token is a child.

    Args:
        tokens: [P], each prefix's last token.
        parents: [P], the prefix without its last token (of prefix 0: itself); ascending.
        depths: [P], how many tokens come before the last.
        paths: [P, D], the prefixes of a prefix, shortest first, then itself; 0 beyond.
        num_children, first_child: [P]; a prefix's children stand side by side.
        levels: the prefixes of each length, side by side.
        answers: [M], the prefix that is the whole answer.
        answer_paths: [M, D], its path.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    depths: torch.Tensor
    paths: torch.Tensor
    num_children: torch.Tensor
    first_child: torch.Tensor
    levels: list[slice]
    answers: torch.Tensor
    answer_paths: torch.Tensor

    @classmethod
    def build(cls, ids: torch.Tensor, mask: torch.Tensor) -> "AnswerTree":
        """
        Args:
            ids, mask: [M, A], 1 = part of the answer.

        Raises:
            ValueError: not a list, an answer that does not begin like the others, has no token to predict, or has
                padding inside.
        """
        _check_list(ids, mask)
        device, vocabulary = ids.device, int(ids.max()) + 1
        answers = torch.zeros(len(ids), dtype=torch.long, device=device)
        root = torch.zeros(1, dtype=torch.long, device=device)
        tokens, parents, depths = [ids[0, :1]], [root], [root]
        levels, size = [slice(0, 1)], 1
        for column in range(1, int(mask.sum(dim=1).max())):
            going_on = mask[:, column].bool()
            pairs = answers[going_on] * vocabulary + ids[going_on, column]
            children, child_of_answer = pairs.unique(return_inverse=True)
            answers[going_on] = size + child_of_answer
            tokens.append(children % vocabulary)
            parents.append(children // vocabulary)
            depths.append(torch.full_like(children, column))
            levels.append(slice(size, size + len(children)))
            size += len(children)
        tokens, parents, depths = torch.cat(tokens), torch.cat(parents), torch.cat(depths)
        num_children = torch.bincount(parents[1:], minlength=size)
        paths = torch.zeros(size, len(levels), dtype=torch.long, device=device)
        for depth, own in enumerate(levels[1:], start=1):
            paths[own] = paths[parents[own]]
            paths[own, depth] = torch.arange(own.start, own.stop, device=device)
        return cls(
            tokens=tokens,
            parents=parents,
            depths=depths,
            paths=paths,
            num_children=num_children,
            first_child=1 + num_children.cumsum(0) - num_children,
            levels=levels,
            answers=answers,
            answer_paths=paths[answers],
        )

    def __len__(self) -> int:
        return len(self.tokens)


def _check_list(ids: torch.Tensor, mask: torch.Tensor) -> None:
    if ids.dim() != 2 or ids.shape != mask.shape or len(ids) == 0:
        raise ValueError(f"`answers` has ids {tuple(ids.shape)} and mask {tuple(mask.shape)}; expected both [M, A].")
    wrong = (ids[:, 0] != ids[0, 0]) | (mask[:, :2].sum(dim=1) < 2)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"Answer {row} of `answers` ({ids[row].tolist()}) must begin with token {int(ids[0, 0])} like the first "
            "one, and go on with at least one token."
        )
    gaps = (mask[:, 1:] > mask[:, :-1]).any(dim=1)
    if gaps.any():
        row = int(gaps.nonzero()[0])
        raise ValueError(
            f"Answer {row} of `answers` ({ids[row].tolist()}, mask {mask[row].tolist()}) has padding before its last "
            "token; pad answers on the right."
        )
