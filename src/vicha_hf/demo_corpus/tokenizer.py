"""A small BERT tokenizer for the demo corpus: its vocabulary is the corpus's words, with letters to fall back on."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import BertTokenizer


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_WORD = re.compile(r"[a-z0-9]+")


def wordpiece_vocabulary(texts: Iterable[str], whole_words: Sequence[str]) -> list[str]:
    """Tokens by id: special tokens, `whole_words` and the words of `texts` (most frequent first), then characters.

    The vocabulary is listed, not learned by merging: with some two hundred different words every one of them deserves
    a token, and a list is the same on every machine. Any other word is spelled out in letters.
    """
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    frequent = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    characters = [*_PUNCTUATION, *_CHARACTERS, *(f"##{character}" for character in _CHARACTERS)]
    return list(dict.fromkeys([*SPECIAL_TOKENS, *frequent, *(w.lower() for w in whole_words), *characters]))


def build_tokenizer(texts: Iterable[str], whole_words: Sequence[str], max_length: int = 512) -> BertTokenizer:
    """A lower-casing BERT tokenizer over `wordpiece_vocabulary`; [PAD] [UNK] [CLS] [SEP] [MASK] are 0 to 4."""
    vocabulary = {token: index for index, token in enumerate(wordpiece_vocabulary(texts, whole_words))}
    return BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=max_length)


def save_tokenizer(tokenizer: BertTokenizer, folder: Path) -> None:
    """Writes `tokenizer.json` and its configuration, and `vocab.txt` for older tools."""
    tokenizer.save_pretrained(folder)
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in tokens), encoding="utf-8")
