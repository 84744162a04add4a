"""Shards that are gone, cut off or damaged: an error, or left out from there on, counted, and passed over alike after a stop."""

import json
import os
import re
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from numbered_shards import jpeg, numbers, write_tar

from vicha_hf.cli import main
from vicha_hf.data import stream_shards as shards_of_streams
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.datasets_pretraining import PretrainingItems
from vicha_hf.data.raw_records import AnnotationError
from vicha_hf.data.read_report import RejectsFile
from vicha_hf.data.stream_dataset import StreamDataset, StreamOptions
from vicha_hf.data.stream_shards import ShardReadError, stream_shards
from vicha_hf.data.transforms import EvaluationTransform
from vicha_hf.mistakes import describe, is_mistake


CUT_OFF = "the shard cannot be read to its end"


def write_numbers(path, numbers):
    write_tar(
        path,
        [
            member
            for number in numbers
            for member in ((f"{number}.jpg", jpeg(number)), (f"{number}.txt", f"word {number}".encode()))
        ],
    )


def write_parquet(path, numbers, row_group_size):
    images = [{"bytes": jpeg(number), "path": None} for number in numbers]
    table = pa.table({"image": images, "caption": [f"word {number}" for number in numbers]})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size, compression=None)


def read_as_stream(path):
    """Numbers of the records that can be used, and whether the shard is told to break off."""
    (shard,) = stream_shards({"path": str(path), "streaming": True})
    found = []
    try:
        for raw in shard.records():
            found.append(int(raw.value["caption"].split()[1]))
    except ShardReadError:
        return found, True
    return found, False


def read_as_table(path):
    try:
        read = read_image_text_records(str(path), on_bad_record="skip")
    except AnnotationError as error:
        return [], CUT_OFF in str(error)
    return [int(record.captions[0].split()[1]) for record in read], read.report.causes == {CUT_OFF: 1}


@pytest.mark.parametrize("read", [read_as_stream, read_as_table])
def test_a_tar_file_cut_anywhere_loses_nothing_silently(tmp_path, read):
    """`tarfile` itself takes a cut between two members, or within a header, for the end."""
    write_numbers(tmp_path / "a.tar", range(4))
    whole = (tmp_path / "a.tar").read_bytes()
    end = max(place for place in range(0, len(whole), 512) if any(whole[place : place + 512])) + 512
    cuts = {*range(0, end, 512), *range(0, end, 217)}
    told = Counter()
    for cut in sorted(cuts):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        found, is_told = read(tmp_path / "cut.tar")
        assert is_told and found == list(range(len(found))), cut
        told[len(found)] += 1
    assert set(told) == {0, 1, 2, 3}
    (tmp_path / "cut.tar").write_bytes(whole[: end + 512])
    assert read(tmp_path / "cut.tar") == (list(range(4)), False)
    # A bit of a header turned over: `tarfile` takes that for the end, too. Members of record 1 might have come behind it.
    damaged = bytearray(whole)
    damaged[whole.index(b"2.jpg")] ^= 1
    (tmp_path / "cut.tar").write_bytes(damaged)
    assert read(tmp_path / "cut.tar") == ([0], True)


def stream_of(folder, **options):
    def collate(items):
        return {"numbers": torch.tensor([int(item["caption"].split()[1]) for item in items])}

    given = {"batch_size": 2, "buffer_size": 5, "seed": 1} | options
    items = PretrainingItems(EvaluationTransform(16), concept_fraction=1)
    path = str(folder / "{a.tar,b.tar,c.tar,d.parquet,e.parquet,f.tar}")
    return StreamDataset({"path": path, "streaming": True}, items, collate, StreamOptions(**given))


@pytest.fixture
def broken(tmp_path):
    """Six shards of ten records: two whole, two cut off, one damaged, one that is gone once training has begun."""
    for place, name in enumerate("abcf"):
        write_numbers(tmp_path / f"{name}.tar", range(10 * place, 10 * place + 10))
    for place, name in enumerate("de", start=4):
        write_parquet(tmp_path / f"{name}.parquet", range(10 * place, 10 * place + 10), row_group_size=4)
    content = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(content[: content.index(b"17.jpg") + 700])
    content = (tmp_path / "d.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(content[: len(content) // 2])
    content = bytearray((tmp_path / "e.parquet").read_bytes())
    # The head of the first page of the second row group.
    start = pyarrow.parquet.ParquetFile(tmp_path / "e.parquet").metadata.row_group(1).column(0).dictionary_page_offset
    content[start : start + 40] = bytes([255]) * 40
    (tmp_path / "e.parquet").write_bytes(content)
    return tmp_path


READABLE = {*range(17), *range(20, 30), *range(50, 54)}


@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 0), (2, 1), (1, 2)])
def test_a_stream_goes_on_behind_broken_shards(broken, num_processes, num_workers):
    """Every record that can be read comes once a pass, and every shard that breaks off is counted once."""
    seen = Counter()
    rejects = RejectsFile(broken / "rejected.jsonl")
    streams = [
        stream_of(
            broken,
            on_bad_record="skip",
            batch_size=1,
            num_processes=num_processes,
            process_index=process,
            num_workers=num_workers,
        )
        for process in range(num_processes)
    ]
    os.remove(broken / "f.tar")
    for stream in streams:
        stream.rejects = rejects
        for reader in range(stream.options.readers_per_process):
            stream.go_on_from(stream.states, reader)
            own = []
            for batch in stream:
                own.append(batch.batch["numbers"].item())
                if batch.state["places"][0]["passes"] == 2:
                    break
            seen.update(own)
    assert seen == Counter(dict.fromkeys(READABLE, 2))
    assert rejects.counts() == {CUT_OFF: 4}
    # Once, though there are two passes.
    assert len(rejects.path.read_text().splitlines()) == 4
    assert {one.record for one in rejects.records()} == {
        f"{broken}/b.tar, from record 7 on",
        f"{broken}/d.parquet, from record 0 on",
        f"{broken}/e.parquet, from record 4 on",
        f"{broken}/f.tar, from record 0 on",
    }


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stopped_stream_with_broken_shards_goes_on_with_the_next_example(broken, num_workers):
    streams = [stream_of(broken, on_bad_record="skip", num_workers=num_workers) for _ in range(5)]
    os.remove(broken / "f.tar")
    whole = numbers(streams[0], 60, num_workers=num_workers)
    parts, states = [], None
    for stream, count in zip(streams[1:], (1, 9, 17, 33), strict=True):
        if states is not None:
            stream.go_on_from(json.loads(json.dumps(states)), len(parts))
        parts += numbers(stream, count, num_workers=num_workers)
        states = stream.states
    assert parts == whole and {number for batch in whole for number in batch} == READABLE


def test_a_broken_shard_is_an_error_until_it_is_mended(broken):
    """What was drawn before the error and after the mending is what the whole shards give."""
    cut = {name: (broken / name).read_bytes() for name in ("b.tar", "d.parquet", "e.parquet")}
    write_numbers(broken / "b.tar", range(10, 20))
    for place, name in enumerate("de", start=4):
        write_parquet(broken / f"{name}.parquet", range(10 * place, 10 * place + 10), row_group_size=4)
    whole = numbers(stream_of(broken), 30)
    mended = {name: (broken / name).read_bytes() for name in cut}
    for name, content in cut.items():
        (broken / name).write_bytes(content)
    before, parts = stream_of(broken), []
    with pytest.raises(ShardReadError, match=rf"(b.tar|d.parquet|e.parquet): {CUT_OFF} \(.*\); write or download it"):
        for batch in before:
            before.saw(batch)
            parts.append(batch.batch["numbers"].tolist())
    for name, content in mended.items():
        (broken / name).write_bytes(content)
    after = stream_of(broken)
    after.go_on_from(before.states, len(parts))
    assert parts + numbers(after, 30 - len(parts)) == whole


def test_a_loading_process_hands_the_error_on_as_one_line(broken):
    with pytest.raises(ShardReadError) as raised:
        numbers(stream_of(broken, num_workers=2), 30, num_workers=2)
    assert is_mistake(raised.value)
    assert re.fullmatch(
        rf"{broken}/\w\.(tar|parquet): {CUT_OFF} \(.*\); write or download it again", describe(raised.value)
    )


def test_nothing_but_broken_shards_ends(tmp_path):
    for name in "abcdef":
        (tmp_path / f"{name}.{'parquet' if name in 'de' else 'tar'}").write_bytes(b"<html>404</html>")
    with pytest.raises(AnnotationError, match=r"no record in .*; check the shards") as raised:
        numbers(stream_of(tmp_path, on_bad_record="skip"), 1)
    assert isinstance(raised.value.__cause__, ShardReadError)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_check_and_pack_count_broken_shards(broken, kind, capsys):
    usable, broken_shards = {"tar": (37, 1), "parquet": (10, 2)}[kind]
    if kind == "parquet":
        write_parquet(broken / "g.parquet", range(60, 70), row_group_size=4)
    files = str(broken / f"*.{kind}")
    assert main(["data", "check", files, f"--json={broken / 'check.json'}", "--no-progress", "--num-workers=1"]) == 1
    result = json.loads((broken / "check.json").read_text())
    assert (result["usable"], result["problems"]) == (usable, {CUT_OFF: broken_shards})
    pack = ["data", "pack", files, "--output", str(broken / "packed"), "--no-progress", "--num-workers=1"]
    assert main(pack) == 1
    assert CUT_OFF in capsys.readouterr().err and not (broken / "packed").exists()
    assert main([*pack, "--on-bad-record=skip"]) == 0
    assert len(read_image_text_records(str(broken / "packed"))) == usable


def test_an_address_whose_connection_breaks_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_of_streams, "_SECONDS_BETWEEN_TRIES", 0)
    write_numbers(tmp_path / "a.tar", range(8))
    content = (tmp_path / "a.tar").read_bytes()
    answers = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Accept-Ranges", "none")
            self.end_headers()

        def do_GET(self):
            body = answers.pop(0)
            self.send_response(500 if body is None else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *arguments):
            pass

    def read():
        (shard,) = stream_shards(address)
        return [int(raw.value["caption"].split()[1]) for raw in shard.records()]

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.tar"
        answers += [content[: content.index(b"5.jpg")], None, content]
        assert read() == list(range(8)) and not answers
        answers += [None] * 3
        with pytest.raises(ShardReadError, match=rf"a.tar: {CUT_OFF}"):
            read()
        assert not answers
        server.shutdown()
