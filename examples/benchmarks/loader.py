"""Time the loading of training images against a plain Pillow loop, on one core, in one run.

    python examples/benchmarks/loader.py --json loader.json
    python examples/benchmarks/loader.py --records 4000000 --json loader.json

The plain loop opens, decodes, resizes the whole image bicubically to a square and normalises it. Ours crops at random,
mirrors and normalises, with and without RandAugment. Images are drawn noise over smooth colours, saved as JPEG of about
the size of photographs. All loops take turns, and each counts the processor's seconds, for others may use the machine.

`--records N` also measures annotations of N records. It gives the seconds of the first start and of the next one. It gives
the growth of a loading process too: memory of its own, and pages of mapped files that all share. `--size tiny` keeps the
rest short.
"""

import importlib
import io
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measuring import add_json_option, print_table
from PIL import Image

from vicha_hf.command_parser import CommandParser
from vicha_hf.mistakes import run_script


@dataclass
class Setting:
    """The sizes of one run."""

    images: int
    large_images: int
    rounds: int
    side: int = 256


SETTINGS = {"tiny": Setting(4, 2, 2), "small": Setting(40, 8, 3), "base": Setting(150, 25, 5)}
SIZES = {"640": (640, 480), "2048": (2048, 1536)}
QUALITY = 85
MEAN, DEVIATION = ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276))


def draw_image(rng: np.random.Generator, width: int, height: int) -> bytes:
    small = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def write_corpus(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Images with captions and a JSON list; returns the list's path."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(draw_image(rng, *size))
        records.append({"image": f"{number}.jpg", "caption": f"a dog on the grass, number {number}"})
    (folder / "train.json").write_text(json.dumps(records))
    return folder / "train.json"


def plain_loop(paths: list[str], side: int) -> Iterator[torch.Tensor]:
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    for path in paths:
        with Image.open(path) as opened:
            image = opened.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        yield (pixels.float() / 255 - mean) / deviation


def datasets_loop(table, side: int) -> Iterator[torch.Tensor]:
    """The loop that the documentation of `datasets` shows."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    for row in table:
        image = row["image"].convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        yield (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - mean) / deviation


def webdataset_loop(shard: Path, side: int) -> Iterator[torch.Tensor]:
    """The loop that the documentation of `webdataset` shows."""
    import webdataset

    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    for image, _ in webdataset.WebDataset(str(shard), shardshuffle=False).decode("pil").to_tuple("jpg", "txt"):
        image = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        yield (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - mean) / deviation


def measure(loops: dict[str, Callable[[], Iterator]], count: int, rounds: int) -> dict[str, float]:
    """Images per processor second of each loop; in every round each has its turn, and the best round counts."""
    best = dict.fromkeys(loops, float("inf"))
    for _ in range(rounds):
        for name, loop in loops.items():
            start = time.process_time()
            found = sum(1 for _ in loop())
            best[name] = min(best[name], time.process_time() - start)
            assert found == count, (name, found)
    return {name: count / seconds for name, seconds in best.items()}


def our_loops(source: str | Path, side: int) -> dict[str, Callable[[], Iterator]]:
    from vicha_hf.data.annotations import read_image_text_records
    from vicha_hf.data.datasets_pretraining import PretrainingDataset
    from vicha_hf.data.transforms import PretrainingTransform

    annotations = read_image_text_records(str(source))
    loops = {}
    for name, randaugment in (("ours", False), ("ours, augmented", True)):
        dataset = PretrainingDataset(annotations, PretrainingTransform(side, randaugment=randaugment))
        loops[name] = lambda dataset=dataset: (dataset[index] for index in range(len(dataset)))
    return loops


def compare_decoding(setting: Setting, folder: Path) -> dict[str, dict[str, float]]:
    """Images per second of the plain loop and of ours, by size of the images."""
    rates = {}
    for name, size in SIZES.items():
        count = setting.images if name == "640" else setting.large_images
        (folder / name).mkdir()
        source = write_corpus(folder / name, count, size)
        paths = [str(folder / name / f"{number}.jpg") for number in range(count)]
        loops = {
            "plain Pillow": lambda paths=paths: plain_loop(paths, setting.side),
            **our_loops(source, setting.side),
        }
        rates[name] = measure(loops, count, setting.rounds)
    return rates


def compare_sources(setting: Setting, folder: Path) -> dict[str, float]:
    """Images per second from JSON, Parquet and tar, beside other libraries' loops over the same shards."""
    import datasets

    from vicha_hf.data.datasets_pretraining import PretrainingItems
    from vicha_hf.data.packing import PackOptions, pack_corpus
    from vicha_hf.data.stream_dataset import StreamDataset, StreamOptions
    from vicha_hf.data.transforms import PretrainingTransform

    source = str(folder / "640" / "train.json")
    for kind in ("webdataset", "parquet"):
        pack_corpus(source, folder / kind, PackOptions(format=kind, side=None, num_workers=1))
    shard = folder / "webdataset" / "00000.tar"
    loops = {
        f"ours, {name}": our_loops(path, setting.side)["ours"]
        for name, path in (("JSON", source), ("Parquet", folder / "parquet"), ("tar", folder / "webdataset"))
    }
    items = PretrainingItems(PretrainingTransform(setting.side, randaugment=False))
    streamed = {"path": str(folder / "webdataset"), "streaming": True}

    def our_stream() -> Iterator:
        stream = StreamDataset(streamed, items, list, StreamOptions(batch_size=1))
        for _, batch in zip(range(setting.images), stream, strict=False):
            yield batch

    loops["ours, tar streamed"] = our_stream
    table = datasets.load_dataset("parquet", data_files=str(folder / "parquet" / "*.parquet"), split="train")
    loops["datasets, Parquet"] = lambda: datasets_loop(table, setting.side)
    try:
        import webdataset  # noqa: F401 -- only to know whether it is there
    except ImportError:
        print("webdataset is not installed and left out: pip install webdataset")
    else:
        loops["webdataset, tar"] = lambda: webdataset_loop(shard, setting.side)
    return measure(loops, setting.images, setting.rounds)


def compare_tokenisation(rounds: int) -> float:
    """Ratio of captions per second: tokenised as a batch, over one by one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [f"word{number}" for number in range(500)]
    model = models.WordLevel(
        {"[UNK]": 0, "[PAD]": 1} | {word: number + 2 for number, word in enumerate(words)}, "[UNK]"
    )
    inner = Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    rng = random.Random(0)
    captions = [" ".join(rng.choices(words, k=12)) for _ in range(256)]
    rates = measure(
        {
            "batch": lambda: iter(tokenizer(captions, padding="longest")["input_ids"]),
            "single": lambda: (tokenizer(caption)["input_ids"] for caption in captions),
        },
        len(captions),
        3 * rounds,
    )
    return rates["batch"] / rates["single"]


def memory_mib() -> tuple[float, float]:
    """Memory that only this process has, and pages of mapped files, which all processes share, MiB (Linux)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return kib["Private_Dirty"] / 1024, (kib["Rss"] - kib["Anonymous"]) / 1024


def _look_in_copies(path: str, count: int) -> list[list[float]]:
    """Growths of two processes: loading processes are copies of one that has imported everything."""
    importlib.import_module("vicha_hf.data.annotations")
    return [_apart("fork", _look_at_records, path, count) for _ in range(2)]


def _look_at_records(path: str, count: int) -> list[float]:
    """Growth of both kinds of memory while a process opens annotations and draws records."""
    before = memory_mib()
    annotations = _read(path)
    rng = random.Random(os.getpid())
    for _ in range(count):
        annotations[rng.randrange(len(annotations))]
    return [after - earlier for after, earlier in zip(memory_mib(), before, strict=True)]


def measure_records(count: int, folder: Path) -> dict[str, float]:
    """Start-up and memory of annotations of many records."""
    os.environ["HF_HOME"] = str(folder / "cache")
    path = folder / "records.json"
    Image.new("RGB", (8, 8)).save(folder / "one.jpg")
    with path.open("w") as file:
        file.write("[")
        for number in range(count):
            record = {
                "image": "one.jpg",
                "caption": f"a caption of about ten words that stands for number {number}",
                "image_id": number,
                "concepts": ["dog", "grass", f"thing{number % 9999}"],
            }
            file.write(("," if number else "") + json.dumps(record) + "\n")
        file.write("]")
    seconds = [_apart("spawn", _start_up, str(path)) for _ in range(2)]
    # Pages of a file that still wait for the disk count as memory of whoever alone has mapped them.
    os.sync()
    # A fresh process: this one has long read where the caches are.
    shown = _apart("spawn", _look_in_copies, str(path), 20_000)
    return {
        "records": count,
        "first_start_seconds": seconds[0],
        "next_start_seconds": seconds[1],
        "private_mib_per_further_process": max(private for private, _ in shown),
        "shared_mib_per_further_process": max(shared for _, shared in shown),
    }


def _apart(start_method: str, function: Callable, *arguments):
    """The result of a function in a process of its own; an error if that ends early."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(start_method)) as apart:
        return apart.submit(function, *arguments).result()


def _read(path: str):
    from vicha_hf.data.annotations import read_image_text_records

    return read_image_text_records(path)


def _start_up(path: str) -> float:
    from vicha_hf.data.annotations import read_image_text_records

    start = time.perf_counter()
    read_image_text_records(path)
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", choices=list(SETTINGS), default="base", help="how many images (default: %(default)s)"
    )
    parser.add_argument("--records", type=int, default=0, metavar="N", help="also measure annotations of N records")
    add_json_option(parser, "loader")
    arguments = parser.parse_args(argv)
    # One core: what a loading process has.
    torch.set_num_threads(1)
    setting = SETTINGS[arguments.size]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Before `datasets`, which is imported later, has read where the caches are.
        os.environ["HF_HOME"] = str(folder / "cache")
        result: dict = measure_records(arguments.records, folder) if arguments.records else {}
        rates = compare_decoding(setting, folder)
        sources = compare_sources(setting, folder)
        result["tokenisation_batch_over_single"] = compare_tokenisation(setting.rounds)
    for name, found in rates.items():
        plain = found["plain Pillow"]
        result[f"over_pillow_{name}"] = found["ours"] / plain
        result[f"over_pillow_{name}_augmented"] = found["ours, augmented"] / plain
    result |= {"images_per_second": rates, "images_per_second_by_source": sources}
    rows = [[f"{name} px, {loop}", f"{rate:.0f}"] for name, found in rates.items() for loop, rate in found.items()]
    rows += [[f"640 px, {loop}", f"{rate:.0f}"] for loop, rate in sources.items()]
    print_table(["loop", "images/s"], rows)
    rows = [[name, f"{value:.2f}"] for name, value in result.items() if isinstance(value, float)]
    print_table(["figure", "value"], rows)
    arguments.json.write(result)


if __name__ == "__main__":
    sys.exit(run_script(main))
