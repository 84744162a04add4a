#!/usr/bin/env bash
# torch 2.13.0 (seen 2026-11-29, Python 3.11, Linux, CPU): `fully_shard`, the call of FSDP2, refuses a module whose class names a
# base made with `typing.Generic` before `nn.Module`, as typed mixins do. It gives the module a class of its own, and Python
# allows the change only where both classes lay out their memory alike. The same base named after `nn.Module` passes, and so
# does a mixin that is not generic. The message speaks of an object's layout and names neither base.
#
# Output seen:
#   no mixin: sharded
#   plain mixin first: sharded
#   generic mixin last: sharded
#   generic mixin first: TypeError: __class__ assignment: 'FSDPGenericFirst' object layout differs from 'GenericFirst'
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# The CPU build of torch, where the index has one.
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" numpy==2.4.6

"$folder/venv/bin/python" - "$folder/store" <<'PYTHON'
import sys
from typing import Generic, TypeVar

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

Inputs = TypeVar("Inputs")


class PlainMixin:
    pass


class GenericMixin(Generic[Inputs]):
    pass


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)


class PlainFirst(PlainMixin, Base):
    pass


class GenericLast(Base, GenericMixin[int]):
    pass


class GenericFirst(GenericMixin[int], Base):
    pass


dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))


def shard(module_class):
    try:
        fully_shard(module_class(), mesh=mesh)
    except TypeError as error:
        return f"TypeError: {error}"
    return "sharded"


cases = {
    "no mixin": Base,
    "plain mixin first": PlainFirst,
    "generic mixin last": GenericLast,
    "generic mixin first": GenericFirst,
}
lines = [f"{name}: {shard(module_class)}" for name, module_class in cases.items()]
print("\n".join(lines))
dist.destroy_process_group()
assert lines == [
    "no mixin: sharded",
    "plain mixin first: sharded",
    "generic mixin last: sharded",
    "generic mixin first: TypeError: __class__ assignment: 'FSDPGenericFirst' object layout differs from 'GenericFirst'",
]
PYTHON
