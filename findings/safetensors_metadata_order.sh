#!/usr/bin/env bash
# safetensors 0.8.0: the same tensors and the same metadata, saved again, give other bytes as soon as the metadata have two
# entries. Their order in the header is drawn anew for every file, also within one process. One entry, and the order of
# tensors, are stable. Whoever compares or deduplicates files by hash must keep all metadata in one entry.
#
# Output seen:
#   files of 200 saves that differ: 1 entry 1, 2 entries 2, 3 entries 6, five tensors without metadata 1
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6

"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from safetensors.numpy import save

tensor = {"embeddings": np.zeros(3, np.float32)}


def kinds(tensors, entries):
    metadata = {f"entry{number}": "same" for number in range(entries)} or None
    return len({save(tensors, metadata) for _ in range(200)})


one, two, three = (kinds(tensor, entries) for entries in (1, 2, 3))
tensors = kinds({f"t{number}": np.zeros(2, np.float32) for number in range(5)}, 0)
print(
    f"files of 200 saves that differ: 1 entry {one}, 2 entries {two}, 3 entries {three}, "
    f"five tensors without metadata {tensors}"
)
assert (one, two, three, tensors) == (1, 2, 6, 1), "the behaviour has changed"
PYTHON
