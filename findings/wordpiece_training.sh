#!/usr/bin/env bash
# tokenizers 0.23.3: WordPieceTrainer gives another vocabulary in every process for the same texts, tokens and not only their
# numbers. It numbers the characters inside words (##a) in the order of a hash table, and equally frequent pairs go by these
# numbers. BpeTrainer without a prefix is stable. Naming every ##character as a special token of the trainer makes WordPiece stable
# too: their numbers are then given.
#
# Output seen:
#   vocabularies of 6 processes: WordPiece 6 orders, 6 sets of tokens; named characters 1 and 1; BPE 1 and 1
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
cat > "$folder/train.py" <<'PYTHON'
import json
import sys
from string import ascii_lowercase

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

COLOURS = "red green blue yellow purple orange brown black white grey".split()
THINGS = "rabbit penguin tractor bicycle umbrella elephant helicopter butterfly lighthouse strawberry".split()
texts = [f"a {colour} {thing} beside the {other}" for colour in COLOURS for thing in THINGS for other in THINGS]
kind = sys.argv[1]
special = ["[UNK]"] + ([f"##{letter}" for letter in ascii_lowercase] if kind == "named" else [])
if kind == "bpe":
    tokenizer, trainer = Tokenizer(models.BPE(unk_token="[UNK]")), trainers.BpeTrainer
else:
    tokenizer, trainer = Tokenizer(models.WordPiece(unk_token="[UNK]")), trainers.WordPieceTrainer
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.train_from_iterator(texts, trainer(vocab_size=120, special_tokens=special, show_progress=False))
print(json.dumps(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)))
PYTHON

"$folder/venv/bin/python" - "$folder/train.py" <<'PYTHON'
import json
import subprocess
import sys


def kinds(kind):
    runs = [subprocess.run([sys.executable, sys.argv[1], kind], check=True, capture_output=True) for _ in range(6)]
    found = [json.loads(run.stdout) for run in runs]
    return len({tuple(one) for one in found}), len({tuple(sorted(one)) for one in found})


plain, named, bpe = kinds("wordpiece"), kinds("named"), kinds("bpe")
print(
    f"vocabularies of 6 processes: WordPiece {plain[0]} orders, {plain[1]} sets of tokens; "
    f"named characters {named[0]} and {named[1]}; BPE {bpe[0]} and {bpe[1]}"
)
assert plain[0] > 1 and plain[1] > 1 and named == (1, 1) and bpe == (1, 1), "the behaviour has changed"
PYTHON
