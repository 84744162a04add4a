"""A BERT tokenizer of a few dozen words, for tests that need a real tokenizer but no download."""

from pathlib import Path

from transformers import BertTokenizerFast


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = """
a an the and of on in with is are to left right above below next
red green blue black white small large dog cat horse man woman child bird tree grass sky snow
car boat ball hat riding running sitting playing standing photo two three
"""
PIECES = ("##s", "##ing", "##ed")


def build_tiny_tokenizer(folder: str | Path) -> BertTokenizerFast:
    """Writes vocab.txt into `folder` and returns the tokenizer: pad 0, unk 1, cls 2, sep 3, mask 4."""
    vocab_file = Path(folder) / "vocab.txt"
    vocab_file.write_text("\n".join([*SPECIAL_TOKENS, *WORDS.split(), *PIECES]) + "\n", encoding="utf-8")
    return BertTokenizerFast(str(vocab_file))
