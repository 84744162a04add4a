"""A BERT-like tokenizer made for a corpus: WordPiece, its size chosen so that few words are split."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer
from transformers import BertTokenizer

from ..models.text_cleaning import clean_caption
from .annotation_sources import list_sources, open_sources
from .annotations import NoUsableRecord, fields_of
from .raw_records import RecordProblem
from .read_report import AnnotationReport


# In BERT's order, so that padding is 0.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Any English word can be spelled, also one that the corpus does not have.
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
# Share of the corpus's words that may be written in pieces; rare ones are, so that they learn from others.
MOST_SPLIT_WORDS = 0.03
SMALLEST, LARGEST = 512, 30_522
# Fields of any task's records that hold texts.
TEXT_FIELDS = (
    "caption",
    "question",
    "sentence",
    "text",
    "answer",
    "answers",
    "concepts",
    "kwords",
    "kwords1",
    "kwords2",
)


def iterate_raw_texts(sources: object, report: AnnotationReport | None = None) -> Iterator[str]:
    """
    Every text of annotations of any task, concepts and answers included; records without any are passed over.

    Args:
        sources: one source or a list of sources, as every reader takes them.
        report: counts the records that cannot be read.

    Raises:
        AnnotationError: a missing or unreadable file, or not one record that can be read.
    """
    report = AnnotationReport() if report is None else report
    for opened in open_sources(sources, None):
        for raw in opened.records.iterate_records():
            report.num_read += 1
            try:
                fields = fields_of(raw)
            except RecordProblem as problem:
                report.reject(raw.where, problem.label, problem.message)
                continue
            report.num_kept += 1
            for name in TEXT_FIELDS:
                yield from _texts(fields.get(name))
    if not report.num_kept:
        message = f"no usable record in {', '.join(map(str, list_sources(sources)))}: {report.summary()}"
        raise NoUsableRecord(message, report)


def build_tokenizer(texts: Iterable[str], vocab_size: int | None = None, max_length: int = 512) -> BertTokenizer:
    """
    Trains a lower-casing WordPiece tokenizer; [PAD] [UNK] [CLS] [SEP] [MASK] are 0 to 4. The same texts give the same one.

    Args:
        texts: of the corpus.
        vocab_size: tokens; None chooses so many that 3 % of the words, counted as they occur, are written in pieces.
        max_length: `model_max_length` of the tokenizer.

    Raises:
        ValueError: texts without a word, or a vocabulary too small for the characters.
    """
    counts = Counter(word for text in texts for word in clean_caption(text, max_words=None).split())
    if not counts:
        raise ValueError("the corpus holds no text: a tokenizer is made of captions, questions, answers and concepts")
    if vocab_size is not None:
        return _as_bert(_train(counts, vocab_size), max_length)
    size = SMALLEST
    while True:
        tokenizer = _train(counts, size)
        if size == LARGEST or _share_split(tokenizer, counts) <= MOST_SPLIT_WORDS or tokenizer.get_vocab_size() < size:
            return _as_bert(tokenizer, max_length)
        size = min(size * 2, LARGEST)


def _train(counts: Counter, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    normalized = {character for word in counts for character in tokenizer.normalizer.normalize_str(word)}
    characters = sorted({*ALPHABET, *PUNCTUATION, *normalized} - {" "})
    inside = [f"##{character}" for character in characters if character not in PUNCTUATION]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        # The library numbers what it finds inside words in the order of a hash table, another one in every process, and
        # equally frequent pairs go by their numbers: without these the same texts give other tokens.
        special_tokens=[*SPECIAL_TOKENS, *inside],
        initial_alphabet=characters,
        show_progress=False,
    )
    needed = len(SPECIAL_TOKENS) + len(inside) + len(characters)
    if vocab_size < needed:
        raise ValueError(f"vocab_size={vocab_size} is not possible: the characters alone take {needed} tokens.")
    # In a fixed order, and each word as often as it occurs, a thousand times at most: beyond that order alone matters.
    words = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    highest = max(1, words[0][1] // 1000)
    tokenizer.train_from_iterator(
        (" ".join([word] * max(1, count // highest)) for word, count in words), trainer=trainer
    )
    return tokenizer


def _share_split(tokenizer: Tokenizer, counts: Counter) -> float:
    words = list(counts)
    encodings = tokenizer.encode_batch(words, add_special_tokens=False)
    split = sum(counts[word] for word, encoding in zip(words, encodings, strict=True) if len(encoding.ids) != 1)
    return split / counts.total()


def _as_bert(trained: Tokenizer, max_length: int) -> BertTokenizer:
    """The vocabulary in transformers' own class."""
    return BertTokenizer(vocab=trained.get_vocab(), do_lower_case=True, model_max_length=max_length)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(value.get("answer"))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
