"""Records as columns: they come back as they were, from memory, from a file, and in another process."""

import pickle
from dataclasses import dataclass

import pytest

from vicha_hf.data.record_storage import ROWS_PER_BATCH, RecordWriter
from vicha_hf.data.stored_images import EmbeddedImage, TarImages


@dataclass(frozen=True)
class Everything:
    image: str | EmbeddedImage
    images: tuple[str | EmbeddedImage, str | EmbeddedImage]
    name: int | str | None
    text: str
    kind: str | None
    number: int
    box: tuple[float, float, float, float] | None
    concepts: tuple[tuple[str, ...], tuple[str, ...]]
    where: str


def record(number, image="images/1.jpg"):
    return Everything(
        image=image,
        images=(image, "b.jpg"),
        name=[number, str(number), None, 2**80][number % 4],
        text="ü🦓" * (number % 3),
        kind=None if number % 2 else "x",
        number=number,
        box=None if number % 5 else (1.5, 2.0, 3.0, 4.0),
        concepts=((), ("dog", "fire hydrant")[: number % 3]),
        where=f"folder, record 7/train.json, record {number}" + (f" (line {number + 1})" if number % 2 else ""),
    )


@pytest.fixture(params=["memory", "file"])
def written(request, tmp_path):
    store = TarImages("shard.tar")
    values = [
        record(number, EmbeddedImage(store, number, 5) if number % 7 == 0 else f"{number}.jpg") for number in range(50)
    ]
    writer = RecordWriter(Everything, tmp_path / "records.arrow" if request.param == "file" else None)
    for value in values:
        writer.append(value)
    assert len(writer) == 50
    return values, writer.finish()


def test_records_come_back_as_they_were(written):
    values, records = written
    assert list(records) == values and [records[index] for index in range(50)] == values
    assert records[-1] == values[-1] and len(records) == 50
    for index in (50, -51):
        with pytest.raises(IndexError, match="of 50"):
            records[index]


def test_another_process_gets_the_same(written):
    values, records = written
    copy = pickle.loads(pickle.dumps(records))
    assert [(one.number, one.where, one.name) for one in copy] == [(one.number, one.where, one.name) for one in values]
    assert copy[0].image.images is copy[49].image.images and copy[0].image.images.path == "shard.tar"
    assert (copy.path is None) == (records.path is None)
    if records.path is not None:
        assert len(pickle.dumps(records)) < 2000


def test_several_batches():
    writer = RecordWriter(Everything)
    for number in range(2 * ROWS_PER_BATCH + 3):
        writer.append(record(number))
    records = writer.finish()
    assert len(records) == 2 * ROWS_PER_BATCH + 3
    for index in (0, ROWS_PER_BATCH - 1, ROWS_PER_BATCH, 2 * ROWS_PER_BATCH, 2 * ROWS_PER_BATCH + 2):
        assert records[index] == record(index)
    chosen = records.take([ROWS_PER_BATCH, 3])
    assert list(chosen) == [record(ROWS_PER_BATCH), record(3)]
    assert records.list_lengths("concepts").tolist() == [2] * len(records)


def test_no_records():
    records = RecordWriter(Everything).finish()
    assert len(records) == 0 and list(records) == []
