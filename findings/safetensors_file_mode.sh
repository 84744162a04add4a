#!/usr/bin/env bash
# safetensors 0.8.0: `save_file` leaves every file with mode 0600, whatever the umask is and whatever mode a file of that name
# had. A model folder of transformers, whose other files have 0644, then loads for its owner alone: on a shared disk colleagues
# and services get "Permission denied" for the weights. A name that is a symbolic link becomes a file of its own; what it led to
# stays as it was. `open(...).write(save(...))` writes the same bytes, follows the link and heeds the umask.
#
# Output seen:
#   save_file: new 600, over a file of 664: 600, over a link: the link is gone
#   write(save()): new 644, over a file of 664: 664, over a link: the link stays
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cd "$folder"
umask 022

"$folder/venv/bin/python" - <<'PYTHON'
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save, save_file

tensors = {"weight": np.zeros(3, np.float32)}
ways = {
    "save_file": lambda path: save_file(tensors, path),
    "write(save())": lambda path: path.write_bytes(save(tensors)),
}


def mode(path):
    return f"{path.stat().st_mode & 0o777:o}"


lines = []
for name, write in ways.items():
    new, old, target, link = (Path(part) for part in ("new", "old", "target", "link"))
    for path in (new, old, target, link):
        path.unlink(missing_ok=True)
    write(new)
    old.write_bytes(b"")
    old.chmod(0o664)
    write(old)
    target.write_bytes(b"")
    link.symlink_to(target)
    write(link)
    state = "the link stays" if link.is_symlink() else "the link is gone"
    lines.append(f"{name}: new {mode(new)}, over a file of 664: {mode(old)}, over a link: {state}")
print("\n".join(lines))
assert lines == [
    "save_file: new 600, over a file of 664: 600, over a link: the link is gone",
    "write(save()): new 644, over a file of 664: 664, over a link: the link stays",
]
PYTHON
