"""Streams: every example once per pass, whoever reads them, and the very next one after an interruption."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from numbered_shards import jpeg, numbers, write_tar
from PIL import Image

from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.datasets_pretraining import PretrainingItems
from vicha_hf.data.image_files import ImageReadError
from vicha_hf.data.packing import PackOptions, pack_corpus
from vicha_hf.data.raw_records import AnnotationError
from vicha_hf.data.read_report import RejectsFile
from vicha_hf.data.stream_dataset import StreamDataset, StreamOptions
from vicha_hf.data.stream_shards import stream_shards, wants_streaming
from vicha_hf.data.transforms import EvaluationTransform


NUM_SHARDS, SHARD_SIZE = 5, 14


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """As img2dataset writes them, with its log of downloads beside them."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(NUM_SHARDS):
        members = []
        for number in range(shard * SHARD_SIZE, (shard + 1) * SHARD_SIZE):
            facts = {"key": f"{number:09d}", "status": "success", "caption": f"word {number}", "error_message": None}
            facts |= {"concepts": ["dog"], "similarity": 0.27} if number % 2 else {"similarity": 1}
            members += [
                (f"{number:09d}.jpg", jpeg(number)),
                (f"{number:09d}.json", json.dumps(facts).encode()),
                (f"{number:09d}.txt", f"word {number}".encode()),
            ]
        write_tar(folder / f"{shard:05d}.tar", members)
        datasets.Dataset.from_dict({"url": ["a", "b"], "status": ["success", "failed_to_download"]}).to_parquet(
            str(folder / f"{shard:05d}.parquet")
        )
    return folder


def collate(items):
    return {
        "numbers": torch.tensor([int(item["caption"].split()[1]) for item in items]),
        "image_ids": torch.tensor([item["image_id"] for item in items]),
    }


def stream_of(sources, **options):
    items = PretrainingItems(EvaluationTransform(16), concept_fraction=1)
    return StreamDataset(
        sources, items, collate, StreamOptions(**{"batch_size": 2, "buffer_size": 6, "seed": 1} | options)
    )


TOTAL = NUM_SHARDS * SHARD_SIZE


def sources_of(shards, kind, tmp_path):
    if kind == "tar":
        return {"path": str(shards), "streaming": True}
    if kind == "pattern":
        return {"path": str(shards / f"{{00000..{NUM_SHARDS - 1:05d}}}.tar"), "streaming": True}
    rows = [{"image": {"bytes": jpeg(number), "path": None}, "caption": f"word {number}"} for number in range(TOTAL)]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    if kind == "parquet":
        for number in range(NUM_SHARDS):
            table.shard(NUM_SHARDS, number, contiguous=True).to_parquet(str(tmp_path / f"{number}.parquet"))
        return {"path": str(tmp_path / "*.parquet"), "streaming": True}
    return table.to_iterable_dataset(num_shards=NUM_SHARDS)


@pytest.mark.parametrize("kind", ["tar", "pattern", "parquet", "dataset"])
@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 0), (1, 2), (2, 2), (3, 3)])
def test_every_pass_shows_every_example_once(shards, tmp_path, kind, num_processes, num_workers):
    """In the third pass too, from where on the `datasets` library draws other orders by itself."""
    sources = sources_of(shards, kind, tmp_path)
    passes = 3
    seen = Counter()
    of_first_pass = Counter()
    for process in range(num_processes):
        options = {
            "num_processes": num_processes,
            "process_index": process,
            "num_workers": num_workers,
            "batch_size": 1,
        }
        dataset = stream_of(sources, **options)
        # Reader by reader: how many batches it has is no secret of the loader's.
        for reader in range(dataset.options.readers_per_process):
            dataset.go_on_from(dataset.states, reader)
            own = []
            for batch in dataset:
                if batch.state["places"][0]["passes"] == passes:
                    own.append(batch.batch["numbers"].item())
                    break
                own.append(batch.batch["numbers"].item())
            seen.update(own)
            of_first_pass.update(own[: len(own) // passes])
    assert seen == Counter(dict.fromkeys(range(TOTAL), passes))
    assert of_first_pass == Counter(range(TOTAL))


@pytest.mark.parametrize("kind", ["tar", "parquet", "dataset"])
@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_stopped_stream_goes_on_with_the_next_example(shards, tmp_path, kind, num_workers):
    sources = sources_of(shards, kind, tmp_path)
    whole = numbers(stream_of(sources, num_workers=num_workers), 90, num_workers=num_workers)
    assert len({number for batch in whole[:30] for number in batch}) > 40
    parts, states = [], None
    for count in (1, 7, 25, 12, 45):
        dataset = stream_of(sources, num_workers=num_workers)
        if states is not None:
            dataset.go_on_from(json.loads(json.dumps(states)), len(parts))
        parts += numbers(dataset, count, num_workers=num_workers)
        states = dataset.states
    assert parts == whole


@pytest.mark.parametrize(("num_processes", "num_workers"), [(2, 2), (2, 3), (1, 4)])
def test_shards_that_readers_cannot_share_evenly_are_shared_by_records(shards, num_processes, num_workers):
    """After as many batches of each reader no example is further ahead of another than by the end of a pass."""
    seen = Counter()
    readers = num_processes * num_workers
    for process in range(num_processes):
        options = {"num_processes": num_processes, "process_index": process, "num_workers": num_workers}
        dataset = stream_of({"path": str(shards), "streaming": True}, batch_size=1, **options)
        for reader in range(num_workers):
            dataset.go_on_from(dataset.states, reader)
            seen.update(batch.batch["numbers"].item() for batch in islice(dataset, TOTAL // readers))
    assert set(seen.values()) == {1} and len(seen) >= TOTAL - readers


def test_two_processes_with_workers_share_weighted_sources(shards, tmp_path):
    """Of the one source there are fewer shards than the four readers, of the other one more."""
    write_tar(
        tmp_path / "few.tar", [(f"{n}.{s}", c) for n in range(11) for s, c in (("jpg", jpeg(n)), ("txt", b"word 0"))]
    )
    sources = [
        {"path": str(shards), "streaming": True, "weight": 3},
        {"path": str(tmp_path / "few.tar"), "streaming": True, "weight": 1},
    ]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    script = [str(Path(__file__).with_name("two_process_stream.py")), json.dumps(sources), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launcher, "--main_process_port=0", *script], env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((tmp_path / f"{process}.json").read_text()) for process in range(2)]
    assert [(one["process"], one["of"]) for one in results] == [(0, 2), (1, 2)] and results[0]["id"] != results[1][
        "id"
    ]
    seen = Counter(record for one in results for record in one["seen"])
    assert len(seen) == TOTAL + 11 and set(seen.values()) == {1}


def test_a_dataset_that_counts_rows_is_not_divided(tmp_path):
    """The library would skip a part of the rows in each shard."""
    for shard in range(2):
        lines = [json.dumps({"caption": f"word {number}"}) for number in range(shard * 50, shard * 50 + 50)]
        (tmp_path / f"{shard}.jsonl").write_text("\n".join(lines))
    dataset = datasets.load_dataset("json", data_files=str(tmp_path / "*.jsonl"), split="train", streaming=True)
    assert len(stream_shards(dataset)) == dataset.num_shards == 2
    whole = datasets.interleave_datasets([dataset.take(20), dataset.skip(80)])
    for counting in (dataset.skip(10), dataset.take(10), dataset.skip(10).map(dict, features=dataset.features), whole):
        (shard,) = stream_shards(counting)
        assert [raw.value["caption"] for raw in shard.records()] == [row["caption"] for row in counting]
    with pytest.raises(
        AnnotationError, match="streamed dataset: the types of its columns are not known, as after `map`"
    ):
        stream_shards(dataset.map(dict))


def test_orders_differ_by_pass_and_seed(shards):
    source = {"path": str(shards), "streaming": True}
    one = numbers(stream_of(source, batch_size=TOTAL), 2)
    assert sorted(one[0]) == sorted(one[1]) == list(range(TOTAL))
    assert one[0] != one[1] and one[0] != numbers(stream_of(source, batch_size=TOTAL, seed=2), 1)[0]
    assert one[0] != list(range(TOTAL))


def test_images_keep_their_bytes_and_fields_their_values(shards, tmp_path):
    for kind in ("tar", "parquet", "dataset"):
        (shard, *_) = stream_shards(sources_of(shards, kind, tmp_path))
        found = [raw.value for raw in shard.records()]
        assert found[3]["image"].read_bytes() == jpeg(3), kind
        assert found[3]["caption"] == "word 3"
    (shard, *_) = stream_shards(sources_of(shards, "tar", tmp_path))
    found = [raw.value for raw in shard.records()]
    assert (found[1]["similarity"], found[2]["similarity"], found[1]["concepts"]) == (0.27, 1, ["dog"])


def test_each_shard_has_columns_of_its_own(tmp_path):
    """
    Those of another split take nothing away, and neither do the first records of a shard: a key, a fraction or a list that
    comes late is there.
    """
    train = [{"caption": f"word {number}", "similarity": 1} for number in range(9)]
    for record in train[6:]:
        record.update(similarity=0.27, concepts=["dog", "grass"])
    validation = [[("txt", b"word 0")], [("json", json.dumps({"caption": "word 1", "similarity": 1}).encode())]]
    members = [[("json", json.dumps(record).encode())] for record in train]
    for name, group in (("train", members), ("validation", validation)):
        with_images = [[("jpg", jpeg(number)), *texts] for number, texts in enumerate(group)]
        write_tar(tmp_path / f"{name}.tar", [(f"{n}.{s}", c) for n, one in enumerate(with_images) for s, c in one])
    shards = stream_shards({"path": str(tmp_path / "{train,validation}.tar"), "streaming": True})
    found = [{k: v for k, v in raw.value.items() if k != "image"} for raw in shards[0].records()]
    assert found == train
    assert [raw.value["caption"] for raw in shards[1].records()] == ["word 0", "word 1"]
    # Read together by number, too.
    read = read_image_text_records([str(tmp_path / f"{name}.tar") for name in ("train", "validation")])
    assert [record.concepts for record in read] == [()] * 6 + [("dog", "grass")] * 3 + [()] * 2
    # Files of a table know their columns: one without concepts among them, or with other types, loses nothing.
    for name, rows in (("train", train), ("validation", [{"caption": "word 9", "similarity": 1}])):
        table = pyarrow.table(
            {name: [row.get(name) for row in rows] for name in rows[-1]}
            | {"image": [{"bytes": jpeg(number), "path": None} for number in range(len(rows))]}
        )
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    for source in (str(tmp_path / "*.parquet"), [str(tmp_path / f"{one}.parquet") for one in ("train", "validation")]):
        read = read_image_text_records(source)
        assert [record.concepts for record in read] == [()] * 6 + [("dog", "grass")] * 3 + [()]
    parts = stream_shards({"path": str(tmp_path / "*.parquet"), "streaming": True})
    values = [raw.value for part in parts for raw in part.records()]
    assert [value["similarity"] for value in values] == [1] * 6 + [0.27] * 3 + [1]
    assert [value.get("concepts") for value in values] == [None] * 6 + [["dog", "grass"]] * 3 + [None]


@pytest.mark.parametrize("row_group_size", [1, 7, 64, 1000])
def test_row_groups_of_parquet_do_not_show(tmp_path, row_group_size):
    """As other tools write them, one for the whole file, or as ours do, small ones."""
    count = 150
    table = pyarrow.table(
        {
            "image": [{"bytes": jpeg(number), "path": None} for number in range(count)],
            "caption": [f"word {number}" for number in range(count)],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=row_group_size)
    (shard,) = stream_shards({"path": str(tmp_path / "a.parquet"), "streaming": True})
    found = [(raw.index, raw.value["caption"], raw.value["image"].read_bytes()) for raw in shard.records()]
    assert found == [(number, f"word {number}", jpeg(number)) for number in range(count)]
    source = {"path": str(tmp_path / "a.parquet"), "streaming": True}
    whole = numbers(stream_of(source, buffer_size=20), 2 * count)
    first = stream_of(source, buffer_size=20)
    parts = numbers(first, 61)
    again = stream_of(source, buffer_size=20)
    again.go_on_from(first.states, len(parts))
    assert parts + numbers(again, 2 * count - 61) == whole
    pack_corpus(str(tmp_path / "a.parquet"), tmp_path / "packed", PackOptions(format="parquet", num_workers=1))
    written = pyarrow.parquet.ParquetFile(tmp_path / "packed/00000.parquet").metadata
    assert [written.row_group(group).num_rows for group in range(written.num_row_groups)] == [100, 50]


def test_equal_images_have_equal_numbers(tmp_path):
    members = [
        (f"{number}.{suffix}", content)
        for number in range(3)
        for suffix, content in (("jpg", jpeg(number // 2)), ("txt", b"word 1"))
    ]
    write_tar(tmp_path / "a.tar", members)
    dataset = stream_of({"path": str(tmp_path / "a.tar"), "streaming": True}, batch_size=3)
    first, second, third = sorted(
        next(iter(dataset)).batch["image_ids"].tolist(),
        key=Counter(next(iter(dataset)).batch["image_ids"].tolist()).get,
    )
    assert second == third != first


def test_sources_are_mixed_by_weights(shards, tmp_path):
    write_tar(
        tmp_path / "b.tar", [(f"{n}.{s}", c) for n in range(9) for s, c in (("jpg", jpeg(n)), ("txt", b"word 900"))]
    )
    sources = [
        {"path": str(shards), "streaming": True, "weight": 3},
        {"path": str(tmp_path / "b.tar"), "streaming": True, "weight": 1},
    ]
    found = [number for batch in numbers(stream_of(sources, batch_size=100), 8) for number in batch]
    assert 0.2 < found.count(900) / len(found) < 0.3
    states = stream_of(sources, batch_size=100)
    numbers(states, 3)
    again = stream_of(sources, batch_size=100)
    again.go_on_from(states.states, 3)
    assert [number for batch in numbers(again, 5) for number in batch] == found[300:]


def test_bad_records_are_errors_or_counted(shards, tmp_path):
    members = [(f"{n}.{s}", c) for n in range(6) for s, c in (("jpg", jpeg(n)), ("txt", f"word {n}".encode()))]
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)).save(buffer, "JPEG")
    noise = buffer.getvalue()
    broken = [
        ("x.jpg", noise[: len(noise) * 9 // 10]),
        ("x.txt", b"word 77"),
        ("y.txt", b"word 78"),
        ("z.jpg", jpeg(2)),
        ("z.json", b"{"),
    ]
    write_tar(tmp_path / "a.tar", members + broken)
    source = {"path": str(tmp_path / "a.tar"), "streaming": True}
    with pytest.raises((AnnotationError, ImageReadError), match=r"a.tar, record \d: "):
        numbers(stream_of(source), 4)
    dataset = stream_of(source, on_bad_record="skip", batch_size=6)
    dataset.rejects = RejectsFile(tmp_path / "rejected.jsonl")
    assert sorted(numbers(dataset, 1)[0]) == list(range(6))
    numbers(dataset, 3)
    assert dataset.rejects.counts() == {
        "field 'image': truncated": 1,
        "field 'image': missing": 1,
        "a JSON member that is not readable": 1,
    }


def test_members_that_lie_apart(tmp_path):
    """As `tar cf x.tar *.jpg *.txt` writes them: refused as a stream, and right where members can be looked up."""
    members = [(f"{n}.jpg", jpeg(n)) for n in range(4)] + [(f"{n}.txt", f"word {n}".encode()) for n in range(4)]
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(AnnotationError, match=r"a.tar: the members named '0' do not lie together.*--sort=name"):
        numbers(stream_of({"path": str(tmp_path / "a.tar"), "streaming": True}, on_bad_record="skip"), 1)
    read = read_image_text_records(str(tmp_path / "a.tar"))
    assert [(record.captions, record.image.read_bytes()) for record in read] == [
        ((f"word {n}",), jpeg(n)) for n in range(4)
    ]


def test_names_with_dots_and_capital_suffixes(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [(f"img.v2.{n}.{s}", c) for n in range(12) for s, c in (("JPG", jpeg(n)), ("txt", f"word {n}".encode()))],
    )
    expected = [f"word {n}" for n in range(12)]
    assert [record.captions[0] for record in read_image_text_records(str(tmp_path / "a.tar"))] == expected
    found = numbers(stream_of({"path": str(tmp_path / "a.tar"), "streaming": True}, batch_size=12), 1)[0]
    assert sorted(found) == list(range(12))


def test_the_folder_of_a_downloader_is_its_shards_not_its_log(shards):
    read = read_image_text_records(str(shards))
    assert len(read) == TOTAL
    assert [record.captions[0] for record in read] == [f"word {number}" for number in range(TOTAL)]
    assert [record.concepts for record in read][:3] == [(), ("dog",), ()]


def test_sources_that_cannot_be_streamed(tmp_path, shards):
    (tmp_path / "a.json").write_text("[]")
    for path, expected in (
        ("a.json", "only *.tar, *.parquet and *.jsonl files can be streamed"),
        ("none.tar", "no such file"),
        ("", "the folder holds no tar shards and no Parquet files"),
    ):
        with pytest.raises(AnnotationError) as error:
            stream_shards({"path": str(tmp_path / path), "streaming": True})
        assert expected in str(error.value)
    (tmp_path / "cut.tar").write_bytes((shards / "00000.tar").read_bytes()[:5000])
    with pytest.raises(AnnotationError, match=r"cut.tar: the shard cannot be read to its end"):
        numbers(stream_of({"path": str(tmp_path / "cut.tar"), "streaming": True}), 40)
    assert wants_streaming("https://example.org/{00000..00009}.tar") and not wants_streaming(str(shards))
    with pytest.raises(AnnotationError, match="can only be streamed"):
        read_image_text_records("https://example.org/a.tar")


@pytest.fixture
def server(shards):
    """The shards' folder, at an address."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(shards))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_shards_at_an_address(server):
    source = f"{server}/{{00000..{NUM_SHARDS - 1:05d}}}.tar"
    found = numbers(stream_of(source, batch_size=7), 10)
    assert sorted(number for batch in found for number in batch) == list(range(TOTAL))
    with pytest.raises(AnnotationError, match=r"none.tar: the shard cannot be read to its end"):
        numbers(stream_of(f"{server}/none.tar"), 1)
