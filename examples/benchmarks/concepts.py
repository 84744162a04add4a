"""The search for visual concepts: selection against the bare matrix product, FAISS and torch; embedding against the bare
encoder; captions per second of the vocabulary.

    python examples/benchmarks/concepts.py --size base --json concepts.json

The memory of a vocabulary of four million captions, which takes most of an hour on one core:

    python examples/benchmarks/concepts.py --size base --parts vocabulary --captions 4000000

`base` selects 15 of 20,000 concepts for 1,000,000 images of width 512. The ratios come from a sample of images, in turn
within one process. Seconds and memory of all images come from a process of its own, which maps the embeddings from the disk.
"""

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from concept_bounds import STRUCTURES, make_embeddings
from concept_bounds import Size as Embeddings
from measuring import add_json_option, matmul_gflops, peak_rss_gib, print_table

from vicha_hf.command_parser import CommandParser
from vicha_hf.concepts import ConceptCorpus, DualEncoder, build_vocabulary, embed_images, select_concepts
from vicha_hf.mistakes import run_script
from vicha_hf.models.concept_ranking import ConceptRanking, fastest_product_dtype


K = 15
ROWS_AT_A_TIME = 256
# That tag captions.
PROCESSES = (1, 2)
NOUNS = [
    "dog",
    "cat",
    "horse",
    "zebra",
    "car",
    "boat",
    "tree",
    "house",
    "table",
    "ball",
    "bird",
    "plane",
    "train",
    "bus",
    "man",
    "woman",
    "child",
    "street",
    "field",
    "beach",
]


@dataclass(frozen=True)
class Size:
    """
    Sizes of what is measured.

    Attributes:
        images, concepts, width: of the selection.
        sample: images of the comparison.
        rounds: of the comparison; the shortest counts.
        encoder_images: images of the embedding; 0 leaves it out.
        encoder_layers, encoder_width: of the encoder of images.
        captions: of the vocabulary's rates.
        many_captions: of its memory.
    """

    images: int
    concepts: int
    width: int
    sample: int
    rounds: int
    encoder_images: int
    encoder_layers: int
    encoder_width: int
    captions: int
    many_captions: int


SIZES = {
    "tiny": Size(2_000, 1_500, 64, 512, 2, 16, 2, 32, 600, 2_000),
    "small": Size(100_000, 20_000, 512, 4_096, 3, 64, 6, 384, 4_000, 20_000),
    "base": Size(1_000_000, 20_000, 512, 8_192, 5, 192, 12, 768, 20_000, 200_000),
}


def main(argv: Sequence[str] | None = None) -> dict:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small", help="default: %(default)s")
    add_json_option(parser, "concepts")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)"
    )
    parser.add_argument("--captions", type=int, metavar="N", help="whose nouns are counted for the memory of that")
    arguments = parser.parse_args(argv)
    size = SIZES[arguments.size]
    if arguments.captions is not None:
        size = replace(size, many_captions=arguments.captions)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts:
            figures |= PARTS[part](size, Path(folder))
    figures |= {"matmul_gflops": matmul_gflops()}
    print_table(
        ["figure", ""],
        [[name, f"{value:.3f}" if isinstance(value, float) else str(value)] for name, value in figures.items()],
    )
    arguments.json.write(figures)
    return figures


def measure_selection(size: Size, folder: Path) -> dict:
    """Ratios to the matrix product, FAISS and torch on a sample; seconds and memory of all images."""
    rng = np.random.default_rng(0)
    concepts = unit_rows(rng, size.concepts, size.width)
    np.save(folder / "concepts.npy", concepts)
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", dtype=np.float16, shape=(size.images, size.width))
    for start in range(0, size.images, 1 << 14):
        rows = images[start : start + (1 << 14)]
        rows[:] = unit_rows(rng, len(rows), size.width)
    images.flush()
    sample = np.array(images[: size.sample])
    del images
    as_float = torch.from_numpy(concepts).float()
    faiss_index = build_faiss_index(as_float.numpy())
    coarse = fastest_product_dtype()
    rankings = {dtype: ConceptRanking(concepts, K, "cpu", dtype) for dtype in {torch.float32, coarse}}
    ways: dict[str, Callable] = {
        "product": lambda rows: torch.from_numpy(rows).float() @ as_float.T,
        "torch": lambda rows: (torch.from_numpy(rows).float() @ as_float.T).topk(K),
        "faiss": lambda rows: faiss_index.search(rows.astype(np.float32), K),
        "select": lambda rows: rankings[coarse].rank(rows),
        "select_float32": lambda rows: rankings[torch.float32].rank(rows),
    }
    seconds = shortest_seconds(ways, sample, size.rounds)
    whole, peak = run_apart(select_all, str(folder / "images.npy"), str(folder / "concepts.npy"))
    return {
        "select_over_product": seconds["select"] / seconds["product"],
        "select_over_faiss": seconds["select"] / seconds["faiss"],
        "select_over_torch": seconds["select"] / seconds["torch"],
        "select_float32_over_product": seconds["select_float32"] / seconds["product"],
        **measure_structured(size),
        "product_precision": str(coarse).removeprefix("torch."),
        "images_per_second": size.images / whole,
        "select_seconds": whole,
        "peak_rss_gib": peak,
        "equal": same_selection(sample, concepts),
    }


def measure_structured(size: Size) -> dict:
    """Ratios to the matrix product on embeddings that lie near each other, so that more concepts are candidates."""
    figures = {}
    embeddings = Embeddings(size.sample // 4, size.concepts, size.width, 400)
    for name in ("middle", "steep"):
        concepts, images = make_embeddings(np.random.default_rng(2), embeddings, STRUCTURES[name])
        concepts, images = concepts.astype(np.float16), images.astype(np.float16)
        as_float = torch.from_numpy(concepts).float()
        ranking = ConceptRanking(concepts, K, "cpu", fastest_product_dtype())
        ways = {
            "product": lambda rows, table=as_float: torch.from_numpy(rows).float() @ table.T,
            "select": ranking.rank,
        }
        seconds = shortest_seconds(ways, images, size.rounds)
        figures[f"select_{name}_over_product"] = seconds["select"] / seconds["product"]
    return figures


def shortest_seconds(ways: dict[str, Callable], rows: np.ndarray, rounds: int) -> dict[str, float]:
    """Seconds of each way for all rows, block by block and in turn; a first round is not counted."""
    seconds = dict.fromkeys(ways, float("inf"))
    for turn in range(rounds + 1):
        # There and back: what runs after another finds its caches.
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            started = time.perf_counter()
            for start in range(0, len(rows), ROWS_AT_A_TIME):
                ways[name](rows[start : start + ROWS_AT_A_TIME])
            if turn:
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


def run_apart(function: Callable, *arguments):
    """The result of a function in a process of its own, whose memory is its own too."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        return apart.submit(function, *arguments).result()


def unit_rows(rng: np.random.Generator, number: int, width: int) -> np.ndarray:
    rows = rng.standard_normal((number, width), dtype=np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def build_faiss_index(rows: np.ndarray):
    import faiss

    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return index


def same_selection(images: np.ndarray, concepts: np.ndarray) -> bool:
    """Whether all three ways choose the same concepts; nearly equal cosines may change places, by rounding."""
    indices, scores = select_concepts(images, concepts, K)
    # Rounding to float16 has made some rows longer than others.
    rows, table = (torch.nn.functional.normalize(torch.from_numpy(one).float(), dim=1) for one in (images, concepts))
    by_torch = (rows @ table.T).topk(K)
    by_faiss = build_faiss_index(table.numpy()).search(rows.numpy(), K)
    found = ((by_torch.values.numpy(), by_torch.indices.numpy()), by_faiss)
    return all(
        np.allclose(scores, others, atol=2e-6) and np.all((indices == places) | (np.abs(scores - others) < 2e-6))
        for others, places in found
    )


def select_all(images: str, concepts: str) -> tuple[float, float]:
    """Seconds and peak memory of a process that selects for every image of a mapped file."""
    rows = np.load(images, mmap_mode="r")
    started = time.perf_counter()
    select_concepts(rows, np.load(concepts), K)
    return time.perf_counter() - started, peak_rss_gib()


def measure_embedding(size: Size, folder: Path) -> dict:
    """Rate of `embed_images` from files, over that of the bare encoder on tensors that are ready."""
    from PIL import Image
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    rng = np.random.default_rng(1)
    records = []
    for number in range(size.encoder_images):
        pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
        records.append({"image": f"{number}.jpg", "caption": "an image"})
    (folder / "images.json").write_text(json.dumps(records))
    vision = {
        "hidden_size": size.encoder_width,
        "intermediate_size": 4 * size.encoder_width,
        "num_hidden_layers": size.encoder_layers,
        "num_attention_heads": size.encoder_width // 32,
        "image_size": 224,
        "patch_size": 16,
    }
    text = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 99,
    }
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision))
    encoder = DualEncoder(model, _ImagesOnly(CLIPImageProcessorPil()), "random CLIP")
    batch = min(32, size.encoder_images)
    inputs = {"pixel_values": torch.randn(batch, 3, 224, 224)}
    encoder.encode_prepared(inputs)
    bare = embedded = float("inf")
    for turn in range(2):
        started = time.perf_counter()
        for _ in range(size.encoder_images // batch):
            encoder.encode_prepared(inputs)
        bare = min(bare, time.perf_counter() - started)
        started = time.perf_counter()
        corpus = ConceptCorpus(str(folder / "images.json"))
        embed_images(corpus, encoder, folder / f"embeddings_{turn}", batch_size=batch, num_workers=1)
        embedded = min(embedded, time.perf_counter() - started)
    return {"embed_over_bare_encoder": bare / embedded, "embed_images_per_second": size.encoder_images / embedded}


@dataclass(frozen=True)
class _ImagesOnly:
    """A processor without texts."""

    image_processor: object


def measure_vocabulary(size: Size, folder: Path) -> dict:
    """Captions per second of one process, of several over that, and the most memory that many captions take."""
    build_vocabulary(made_up_captions(100), min_count=1)
    rates = {}
    for processes in PROCESSES:
        # The start of processes is left out: it costs seconds, of few captions and of many.
        few, many = (_seconds_of_vocabulary(number, processes) for number in (size.captions // 4, size.captions))
        rates[processes] = (size.captions - size.captions // 4) / (many - few)
    return {
        "vocabulary_captions_per_second": rates[1],
        **{f"vocabulary_captions_per_second_{number}_processes": rates[number] for number in PROCESSES[1:]},
        **{f"vocabulary_{number}_processes_over_one": rates[number] / rates[1] for number in PROCESSES[1:]},
        "vocabulary_memory_captions": size.many_captions,
        "vocabulary_peak_rss_gib": run_apart(memory_of_vocabulary, size.many_captions),
    }


def made_up_captions(number: int) -> Iterator[str]:
    """Captions whose words come again, but for one word in every fourteenth caption, as in captions from the web."""
    pairs = itertools.cycle(itertools.permutations(NOUNS, 2))
    for place, (left, right) in enumerate(itertools.islice(pairs, number)):
        rare = "".join(chr(ord("a") + int(digit)) for digit in str(place))
        yield f"a {left} next to two {right}s on a sunny day" + (f" by the {rare}" if place % 14 == 0 else "")


def _seconds_of_vocabulary(number: int, processes: int) -> float:
    started = time.perf_counter()
    build_vocabulary(made_up_captions(number), num_processes=processes)
    return time.perf_counter() - started


def memory_of_vocabulary(number: int) -> float:
    """Peak memory, GiB, of a process that counts the nouns of so many captions."""
    build_vocabulary(made_up_captions(number))
    return peak_rss_gib()


PARTS = {"selection": measure_selection, "embedding": measure_embedding, "vocabulary": measure_vocabulary}


if __name__ == "__main__":
    sys.exit(run_script(main))
