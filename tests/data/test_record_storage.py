import pickle

import pytest

from vicha_hf.data.record_storage import PackedRecords


class Shared:
    def __init__(self, name):
        self.name = name


def test_behaves_like_a_list():
    values = [("a", 1), {"b": [2, 3]}, None, "ü" * 1000]
    records = PackedRecords()
    assert len(records) == 0 and not records
    for value in values:
        records.append(value)
    assert list(records) == values and len(records) == 4
    assert records[-1] == values[-1]
    for index in (4, -5):
        with pytest.raises(IndexError, match="of 4"):
            records[index]
    assert list(pickle.loads(pickle.dumps(records))) == values


def test_appending_after_reading():
    records = PackedRecords()
    records.append(1)
    assert records[0] == 1
    records.append(2)
    assert list(records) == [1, 2]


def test_shared_objects_are_kept_once():
    one, other = Shared("x" * 100_000), Shared("other")
    records = PackedRecords(shared_types=(Shared,))
    for number in range(100):
        records.append((number, one if number % 2 else other))
    assert records[1][1] is one and records[98][1] is other
    copy = pickle.loads(pickle.dumps(records))
    assert copy[1][1] is copy[99][1] and copy[1][1].name == one.name
    assert len(pickle.dumps(records)) < 200_000
