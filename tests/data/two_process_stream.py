"""One of several processes that share weighted streams: writes which records its loading processes give in the first pass."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from accelerate import Accelerator
from torch.utils.data import DataLoader

from vicha_hf.data.datasets_pretraining import PretrainingItems
from vicha_hf.data.transforms import EvaluationTransform
from vicha_hf.training.streams import training_stream


def main(sources: str, output: str) -> None:
    accelerator = Accelerator(cpu=True)
    data = SimpleNamespace(
        train=json.loads(sources), shuffle_buffer=4, on_bad_record="raise", allow_outside_root=False, image_root=None
    )
    arguments = SimpleNamespace(data=data, max_steps=1, per_device_batch_size=1, seed=0, num_workers=2)
    items = PretrainingItems(EvaluationTransform(16), concept_fraction=1)
    stream = training_stream(arguments, items, lambda items: {})
    num_sources = len(stream.shards)
    places = [state["places"] for state in stream.states]
    seen = []
    for batch in DataLoader(stream, batch_size=None, num_workers=2):
        before, after = places[batch.reader], batch.state["places"]
        (source,) = (number for number in range(num_sources) if after[number] != before[number])
        if before[source]["passes"] == 0:
            seen += batch.records
        places[batch.reader] = after
        if all(place["passes"] > 0 for reader in places for place in reader):
            break

    result = {"process": accelerator.process_index, "of": accelerator.num_processes, "id": os.getpid(), "seen": seen}
    Path(output, f"{accelerator.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
