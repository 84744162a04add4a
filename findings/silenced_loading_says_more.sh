#!/usr/bin/env bash
# transformers 5.24.0: who silences `transformers.modeling_utils`, for instance to hold back its table of missing weights, makes
# every `from_pretrained` say more: another logger then lists all layers that "were not sharded", though nobody asked for
# tensor parallelism. The check runs where the level that was set on this one logger is at least WARNING, which is the
# case for ERROR and not for the default, where the logger has none of its own. A model without a plan has an empty one,
# which counts as a plan without rules. A filter on the logger silences it without that.
#
# Output seen:
#   layers listed by the default: 0, by level ERROR: 23, by a filter: 0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# The CPU build of torch, where the index has one.
"$folder/venv/bin/pip" install --quiet "torch==2.13.0"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0

HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/model" <<'PYTHON'
import logging
import sys

from transformers import BertConfig, BertModel

folder, heard = sys.argv[1], []


class Listener(logging.Handler):
    def emit(self, record):
        if "not sharded" in record.getMessage():
            heard.extend(record.getMessage().split(": ", 1)[1].split(", "))


logging.getLogger("transformers").addHandler(Listener())
sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
BertModel(BertConfig(**sizes)).save_pretrained(folder)


def layers_listed():
    heard.clear()
    BertModel.from_pretrained(folder)
    return len(heard)


logger = logging.getLogger("transformers.modeling_utils")
by_default = layers_listed()
logger.setLevel(logging.ERROR)
by_level = layers_listed()
logger.setLevel(logging.NOTSET)
logger.addFilter(lambda record: record.levelno >= logging.ERROR)
by_filter = layers_listed()
print(f"layers listed by the default: {by_default}, by level ERROR: {by_level}, by a filter: {by_filter}")
assert (by_default, by_level, by_filter) == (0, 23, 0), "the behaviour has changed"
PYTHON
