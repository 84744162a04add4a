"""The likelihoods of a tree of answers, prefix by prefix: no token is decoded twice for a question."""

from dataclasses import dataclass

import torch
from torch import nn

from .decoder_answer import AnswerDecoder, QuestionEncoding
from .encoder_attention import cross_attention_implementation, expand_key_mask


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


# Prefixes, of all questions together, that are decoded at once; the logits over the vocabulary bound it.
PREFIXES_PER_BATCH = 512


# Prefixes per question that the exact search decodes before it looks again at what can still be among the best.
PREFIXES_PER_ROUND = 32


class PrefixLikelihoods:
    """
    log p(prefix | question) of the prefixes of an answer tree, for B questions. A prefix is *decoded* to learn the
    likelihoods of its children; keys and values that longer prefixes will attend to are kept.

    In evaluation mode; without gradient.

    Args:
        decoder, head: the answer decoder and its language head.
        question: B encoded questions.
        tree: the answers.

    Attributes:
        values: [B, P], log p of each prefix; -inf as long as a prefix of it has not been decoded.
        first_token_logits: [B, vocabulary].
    """

    @torch.no_grad()
    def __init__(self, decoder: AnswerDecoder, head: nn.Module, question: QuestionEncoding, tree: AnswerTree):
        self.decoder, self.head, self.question, self.tree = decoder, head, question, tree
        num_questions, device = len(question.hidden_states), question.hidden_states.device
        self.values = torch.full((num_questions, len(tree)), -torch.inf, device=device)
        self.values[:, 0] = 0.0
        # log p of each prefix's last token given those before.
        self._steps = self.values.clone()
        implementation = cross_attention_implementation(decoder.config._attn_implementation)
        self._question_mask = expand_key_mask(question.attention_mask, question.hidden_states.dtype, implementation)
        self._embeddings = self._embed_prefixes()
        # Only what a prefix that is decoded itself attends to is kept.
        has_grandchildren = torch.zeros(len(tree), dtype=torch.bool, device=device)
        has_grandchildren[tree.parents[tree.num_children > 0]] = True
        self._slot_in_question = has_grandchildren.cumsum(0) - 1
        self._has_slot = has_grandchildren
        self._slots_per_question = int(has_grandchildren.sum())
        layers, width = len(decoder.encoder.layer), decoder.config.hidden_size
        slots = num_questions * self._slots_per_question
        # Zeros: what lies beyond a prefix has no weight, and no weight times NaN would still be NaN. Under autocast
        # projections are of lower precision than states.
        kept = question.key_values[0][0].new_zeros(2, layers, slots, width)
        self._keys, self._values = kept[0], kept[1]
        every = torch.arange(num_questions, device=device)
        self.first_token_logits = self.decode(every, torch.zeros_like(every))

    @torch.no_grad()
    def decode(self, questions: torch.Tensor, prefixes: torch.Tensor) -> torch.Tensor:
        """
        Learns the likelihoods of the children of n prefixes: question `questions[i]`, ascending, with prefix
        `prefixes[i]`. What a prefix begins with comes before it or has been decoded. Returns the logits of the last batch
        [up to n, vocabulary].
        """
        for start in range(0, len(questions), PREFIXES_PER_BATCH):
            batch = slice(start, start + PREFIXES_PER_BATCH)
            logits = self.head(self._states(questions[batch], prefixes[batch]))
            self._read(questions[batch], prefixes[batch], logits)
        for own in self.tree.levels[1:]:
            self.values[:, own] = self.values[:, self.tree.parents[own]] + self._steps[:, own]
        return logits

    def decode_paths(self, paths: torch.Tensor) -> None:
        """Decodes all that the likelihoods of some answers need: `paths` [B, n, D], rows of the tree's `answer_paths`."""
        wanted = torch.zeros_like(self.values, dtype=torch.bool).scatter_(1, paths.flatten(1), True)
        wanted &= self.tree.num_children > 0
        wanted[:, 0] = False
        questions, prefixes = wanted.nonzero(as_tuple=True)
        if len(questions) > 0:
            self.decode(questions, prefixes)

    def decode_best(self, k: int, first_counts: int = 1) -> None:
        """
        Decodes until the `k` best answers of every question are known. No answer is likelier than its beginning, so a
        prefix that is less likely than k whole answers is never decoded. `first_counts`: how often the first token's
        likelihood counts.
        """
        tree = self.tree
        decoded = (tree.num_children == 0).expand_as(self.values).clone()
        decoded[:, 0] = True
        while True:
            bounds = self.scores(first_counts)
            enough = bounds[:, tree.answers].topk(k, dim=1).values[:, -1:]
            open_prefixes = bounds.masked_fill(decoded | (bounds < enough), -torch.inf)
            best, prefixes = open_prefixes.topk(min(PREFIXES_PER_ROUND, len(tree)), dim=1)
            questions, places = (best > -torch.inf).nonzero(as_tuple=True)
            if len(questions) == 0:
                return
            prefixes = prefixes[questions, places]
            decoded[questions, prefixes] = True
            self.decode(questions, prefixes)

    def scores(self, first_counts: int = 1) -> torch.Tensor:
        """[B, P], the likelihoods with the first token's counted `first_counts` times."""
        if first_counts == 1 or self.tree.paths.shape[1] == 1:
            return self.values
        return self.values + (first_counts - 1) * self.values[:, self.tree.paths[:, 1]]

    def _embed_prefixes(self) -> torch.Tensor:
        """Each prefix's last token at its position, [P, d_t]; zero where nothing follows."""
        tree = self.tree
        embedded = self.question.hidden_states.new_zeros(len(tree), self.decoder.config.hidden_size)
        for depth in range(tree.paths.shape[1]):
            own = ((tree.depths == depth) & (tree.num_children > 0)).nonzero()[:, 0]
            embedded[own] = self.decoder.embeddings(tree.tokens[tree.paths[own, : depth + 1]])[:, -1]
        return embedded

    def _states(self, questions: torch.Tensor, prefixes: torch.Tensor) -> torch.Tensor:
        """The decoder's last states [n, d_t] at the last tokens of n prefixes."""
        tree, hidden = self.tree, self._embeddings[prefixes]
        depths = tree.depths[prefixes]
        earlier = tree.paths[prefixes, : int(depths.max())]
        slots = questions[:, None] * self._slots_per_question + self._slot_in_question[earlier]
        beyond = torch.arange(earlier.shape[1], device=depths.device) >= depths[:, None]
        kept = self._has_slot[prefixes]
        own_slots = questions[kept] * self._slots_per_question + self._slot_in_question[prefixes[kept]]
        groups = list(zip(*(part.tolist() for part in questions.unique_consecutive(return_counts=True)), strict=True))
        for number, layer in enumerate(self.decoder.encoder.layer):
            block = layer.attention
            key, value = block.self.key(hidden), block.self.value(hidden)
            self._keys[number, own_slots], self._values[number, own_slots] = key[kept], value[kept]
            keys = torch.cat([self._keys[number, slots], key[:, None]], dim=1)
            values = torch.cat([self._values[number, slots], value[:, None]], dim=1)
            context = _attend_once(block.self.query(hidden), keys, values, beyond, block.self)
            hidden = block.output(context, hidden)
            hidden = self._read_question(number, layer.crossattention, hidden, groups)
            hidden = layer.feed_forward(hidden)
        return hidden

    def _read_question(self, number: int, block: nn.Module, hidden: torch.Tensor, groups) -> torch.Tensor:
        """Cross-attention, the prefixes of one question as one sequence: its keys and values are not repeated."""
        key, value = self.question.key_values[number]
        contexts, start = [], 0
        for row, count in groups:
            own = slice(row, row + 1)
            mask = None if self._question_mask is None else self._question_mask[own]
            asking = hidden[None, start : start + count]
            contexts.append(block.self(asking, key[own], value[own], mask)[0][0])
            start += count
        return block.output(torch.cat(contexts), hidden)

    def _read(self, questions: torch.Tensor, prefixes: torch.Tensor, logits: torch.Tensor) -> None:
        """Keeps the log-probabilities of the children's tokens; the normaliser is over the whole vocabulary."""
        counts = self.tree.num_children[prefixes]
        row = torch.arange(len(prefixes), device=prefixes.device).repeat_interleave(counts)
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        children = self.tree.first_child[prefixes][row] + place
        log_probabilities = logits[row, self.tree.tokens[children]].float() - logits.float().logsumexp(dim=-1)[row]
        self._steps[questions[row], children] = log_probabilities


def _attend_once(query, keys, values, beyond, attention) -> torch.Tensor:
    """
    Attends from one position [n, d] to at most a handful [n, 1 + D, d]. The last of these is its own, and `beyond` [n,
    D] are not there. Sums of products are faster than a library's attention at this size.
    """
    heads = (-1, attention.head_dim)
    scores = (query[:, None] * keys).unflatten(-1, heads).sum(-1) * attention.scaling
    scores[:, :-1].masked_fill_(beyond[..., None], torch.finfo(scores.dtype).min)
    weights = scores.float().softmax(dim=1).to(values.dtype)
    return (weights[..., None] * values.unflatten(-1, heads)).sum(dim=1).flatten(1)
