"""The saved tokenizer reads texts as training does, whoever opens it."""

import json
import random
import subprocess
import sys

import pytest
import text_cleaning_obvious as obvious
from tiny_tokenizer import WORDS, build_tiny_tokenizer
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizer

from vicha_hf import SimlaImageProcessor, SimlaProcessor, ViChaImageProcessor, ViChaProcessor
from vicha_hf.models.text_cleaning import reading_tokenizer


ODD = [
    *"aB cD-/.,'!?\"()*#:; \t\n<>éİΣσ\u200b\u3000",
    "😀",
    "  ",
    "<person>",
    "[SEP]",
    "[MASK]",
    *(f"{w} " for w in WORDS.split()),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def odd_texts(number: int) -> list[str]:
    draw = random.Random(1)
    return ["".join(draw.choice(ODD) for _ in range(draw.randrange(1, 60))) for _ in range(number)]


@pytest.mark.parametrize("final_sep", [True, False])
@pytest.mark.parametrize("kind", ["caption", "question"])
def test_odd_texts_give_the_tokens_of_cleaned_texts(tokenizer, kind, final_sep):
    clean = {"caption": obvious.clean_caption, "question": obvious.clean_question}[kind]
    processor = SimlaProcessor(
        SimlaImageProcessor(), tokenizer, max_text_length=20, final_sep=final_sep, text_cleaning=kind, max_words=8
    )
    for text in odd_texts(500):
        words = tokenizer(clean(text, 8), add_special_tokens=False)["input_ids"]
        ends = [tokenizer.sep_token_id] if final_sep else []
        expected = [tokenizer.cls_token_id, *words[: 19 - len(ends)], *ends]
        assert processor(text=text)["input_ids"] == [expected], text
        assert processor.tokenizer(text, truncation=True)["input_ids"] == expected


def test_cleaned_texts_stay_as_they_are(tokenizer):
    processor = ViChaProcessor(ViChaImageProcessor(), tokenizer)
    texts = [f"{text} dog" for text in odd_texts(200) if "<" not in text]
    cleaned = [obvious.clean_caption(text, 30) for text in texts]
    assert processor(text=cleaned) == processor(text=texts)


def test_answers_and_concepts_are_not_cleaned(tokenizer):
    processor = ViChaProcessor(ViChaImageProcessor(), tokenizer, final_sep=False, concept_separator=" [SEP] ")
    plain = build_plain(tokenizer)
    assert processor.tokenize_answers(["Dog-Cat's"])["input_ids"].tolist() == [plain("Dog-Cat's")["input_ids"]]
    concepts = processor(concepts=[["dog-cat", "snow"]])["concept_input_ids"]
    assert concepts == [plain("dog-cat [SEP] snow")["input_ids"][:-1]]
    assert processor(text="dog-cat")["input_ids"] == [plain("dog cat")["input_ids"][:-1]]


def build_plain(tokenizer) -> BertTokenizer:
    return BertTokenizer(vocab=tokenizer.get_vocab())


def test_truncation_off_keeps_all_words(tokenizer):
    processor = ViChaProcessor(ViChaImageProcessor(), tokenizer, max_words=5)
    assert len(processor(text="a dog " * 40)["input_ids"][0]) == 7
    assert len(processor(text="a dog " * 40, truncation=False)["input_ids"][0]) == 82


@pytest.mark.parametrize("kind", ["caption", "question", None])
@pytest.mark.parametrize("final_sep", [True, False])
def test_a_saved_tokenizer_is_the_same_and_can_be_undone(tokenizer, tmp_path, kind, final_sep):
    options = {"text_cleaning": kind, "max_words": 7, "final_sep": final_sep, "max_length": 9}
    made = reading_tokenizer(tokenizer, **options)
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*odd_texts(50), "a dog " * 20]
    assert loaded.model_max_length == 9 and loaded.padding_side == "right"
    assert loaded(texts, truncation=True)["input_ids"] == made(texts, truncation=True)["input_ids"]
    assert reading_tokenizer(loaded, **options) is loaded
    undone = reading_tokenizer(loaded, text_cleaning=None, max_length=512)
    assert undone(texts)["input_ids"] == build_plain(tokenizer)(texts)["input_ids"]
    # The tokenizer that was given is left alone.
    assert tokenizer(texts)["input_ids"] == build_plain(tokenizer)(texts)["input_ids"]


def test_the_tokenizer_follows_the_processor(tokenizer, tmp_path):
    processor = ViChaProcessor(ViChaImageProcessor(), tokenizer)
    assert processor.tokenizer.model_max_length == 25
    processor.max_text_length, processor.text_cleaning, processor.final_sep = 6, "question", False
    processor.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.model_max_length == 6
    assert saved("A <person> dog, in the snow?", truncation=True) == processor.tokenizer(
        "a <person> dog in", truncation=True
    )
    loaded = ViChaProcessor.from_pretrained(tmp_path)
    assert (loaded.text_cleaning, loaded.max_words, loaded.final_sep) == ("question", 30, False)


def test_a_process_without_the_package_reads_the_same(tokenizer, tmp_path):
    processor = ViChaProcessor(ViChaImageProcessor(), tokenizer, max_text_length=8, final_sep=False)
    processor.save_pretrained(tmp_path)
    texts = ["A Dog's [SEP] Ball.", "black-and-white dogs, on the GRASS! " * 3]
    script = """
import json, sys
sys.modules["vicha_hf"] = None
from transformers import AutoTokenizer
print(json.dumps(AutoTokenizer.from_pretrained(sys.argv[1])(json.loads(sys.argv[2]), truncation=True)["input_ids"]))
"""
    command = [sys.executable, "-c", script, str(tmp_path), json.dumps(texts)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert json.loads(output) == processor(text=texts, padding=False)["input_ids"]


def test_unusable_tokenizers(tokenizer, tmp_path):
    class Slow(PreTrainedTokenizer):
        def __init__(self):
            super().__init__(pad_token="[PAD]")

        vocab_size = 1

        def get_vocab(self):
            return {"[PAD]": 0}

    with pytest.raises(TypeError, match=r"must be a fast one .*got Slow"):
        reading_tokenizer(Slow(), text_cleaning=None, max_length=9)
    without = build_tiny_tokenizer(tmp_path)
    without.sep_token = None
    with pytest.raises(ValueError, match="no sep_token"):
        ViChaProcessor(ViChaImageProcessor(), without)
