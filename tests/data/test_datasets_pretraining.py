from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.collators import PretrainingCollator
from vicha_hf.data.datasets_pretraining import PretrainingDataset
from vicha_hf.data.image_files import ImageReadError
from vicha_hf.data.transforms import EvaluationTransform, PretrainingTransform


@pytest.fixture
def annotations(write_json, image_records):
    return read_image_text_records(write_json(image_records))


def same_items(one, other):
    return (
        torch.equal(one["pixel_values"], other["pixel_values"])
        and one["caption"] == other["caption"]
        and one["concepts"] == other["concepts"]
        and one["image_id"] == other["image_id"]
    )


def test_item(annotations):
    item = PretrainingDataset(annotations, PretrainingTransform(32))[5]
    assert item["pixel_values"].shape == (3, 32, 32) and item["pixel_values"].dtype == torch.float32
    assert item["caption"] in {f"A red dog, photo {number}!" for number in range(3)}
    assert len(item["concepts"]) == 1 and item["concepts"][0] in annotations[5].concepts
    assert item["image_id"] == 5


def test_item_depends_on_seed_epoch_and_index_alone(annotations):
    dataset, twin = (PretrainingDataset(annotations, PretrainingTransform(32), seed=3) for _ in range(2))
    # Another order of visits, and a visit of another epoch in between, must not matter.
    twin[2]
    twin.set_epoch(1)
    twin[0]
    twin.set_epoch(0)
    torch.manual_seed(99)
    for index in (5, 1, 5, 3):
        assert same_items(dataset[index], twin[index])
    assert same_items(dataset[-1], dataset[5])


def test_the_fingerprint_is_of_the_content(annotations, write_json, image_records, image_folder):
    transform = EvaluationTransform(8)
    first = PretrainingDataset(annotations, transform).fingerprint()
    assert PretrainingDataset(annotations, transform, seed=5).fingerprint() == first
    moved = write_json(image_records, "moved.json")
    assert PretrainingDataset(read_image_text_records(moved), transform).fingerprint() == first
    for change in (
        lambda records: records[3].update(caption="another one"),
        lambda records: records[3].update(concepts=["dog"]),
        lambda records: records[3].update(image="images/0.png"),
        lambda records: records.reverse(),
        lambda records: records.pop(),
    ):
        records = [dict(record) for record in image_records]
        change(records)
        changed = read_image_text_records(write_json(records, "changed.json"))
        assert PretrainingDataset(changed, transform).fingerprint() != first
    assert PretrainingDataset(annotations, transform, captions="all").fingerprint() != first


def test_epochs_and_seeds_draw_anew(annotations):
    dataset = PretrainingDataset(annotations, PretrainingTransform(32), seed=0)
    first = dataset[5]
    dataset.set_epoch(1)
    assert not torch.equal(dataset[5]["pixel_values"], first["pixel_values"])
    other = PretrainingDataset(annotations, PretrainingTransform(32), seed=1)
    assert not torch.equal(other[5]["pixel_values"], first["pixel_values"])
    captions, concepts = Counter(), Counter()
    steady = PretrainingDataset(annotations, EvaluationTransform(8))
    for epoch in range(150):
        steady.set_epoch(epoch)
        captions[steady[5]["caption"]] += 1
        concepts[steady[5]["concepts"][0]] += 1
    assert len(captions) == 3 and min(captions.values()) > 25
    assert len(concepts) == 5 and min(concepts.values()) > 10


def test_no_two_items_share_their_draws(annotations):
    draws = set()
    for seed in range(3):
        dataset = PretrainingDataset(annotations, lambda image, rng: rng.integers(2**60), seed=seed)
        for epoch in range(3):
            dataset.set_epoch(epoch)
            draws.update(int(dataset[index]["pixel_values"]) for index in range(6))
    assert len(draws) == 3 * 3 * 6


def test_same_data_with_and_without_workers_that_live_on(annotations, tiny_processor):
    def run(num_workers):
        dataset = PretrainingDataset(annotations, PretrainingTransform(32), seed=7)
        loader = DataLoader(
            dataset,
            batch_size=2,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=PretrainingCollator(tiny_processor),
        )
        batches = []
        for epoch in range(2):
            dataset.set_epoch(epoch)
            batches.extend(loader)
        return batches

    alone, with_workers = run(0), run(2)
    assert len(alone) == len(with_workers) == 6
    for one, other in zip(alone, with_workers, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one)
    # The workers outlived the first epoch and must have seen the number of the second.
    assert not torch.equal(with_workers[0]["pixel_values"], with_workers[3]["pixel_values"])


def test_all_captions(annotations):
    dataset = PretrainingDataset(annotations, EvaluationTransform(8), captions="all")
    assert len(dataset) == 12  # 1 + 2 + 3 captions, twice
    items = [dataset[index] for index in range(len(dataset))]
    assert [item["image_id"] for item in items] == [0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5]
    assert [item["caption"][-2] for item in items] == list("001012001012")


def test_concept_options(annotations):
    everything = PretrainingDataset(annotations, EvaluationTransform(8), concept_fraction=1.0)
    assert everything[5]["concepts"] == ["dog", "cat", "grass", "tree", "snow"]
    assert everything[0]["concepts"] == []
    nothing = PretrainingDataset(annotations, EvaluationTransform(8), use_concepts=False)
    assert nothing[5]["concepts"] == []


def test_some_items_come_without_concepts(annotations):
    plain = PretrainingDataset(annotations, EvaluationTransform(8))
    without, seen = 0, 0
    dropped = PretrainingDataset(annotations, EvaluationTransform(8), concept_dropout=0.5)
    for epoch in range(40):
        plain.set_epoch(epoch)
        dropped.set_epoch(epoch)
        for index in (1, 2, 4, 5):
            # What is left is what would have been drawn anyway.
            assert dropped[index]["concepts"] in ([], plain[index]["concepts"])
            without += not dropped[index]["concepts"]
            seen += 1
    assert 0.35 < without / seen < 0.65


@pytest.mark.parametrize(
    "arguments",
    [{"captions": "two"}, {"concept_fraction": 0}, {"concept_fraction": 2}, {"concept_dropout": 1}, {"seed": -1}],
)
def test_bad_arguments(annotations, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        PretrainingDataset(annotations, EvaluationTransform(8), **arguments)


def test_bad_epoch_and_index(annotations):
    dataset = PretrainingDataset(annotations, EvaluationTransform(8))
    with pytest.raises(ValueError, match="epoch=-1"):
        dataset.set_epoch(-1)
    for index in (6, -7):
        with pytest.raises(IndexError, match="dataset of 6 items"):
            dataset[index]


def test_broken_image_is_named_by_a_worker(annotations, image_folder, tiny_processor):
    file = image_folder / "images" / "3.png"
    file.write_bytes(file.read_bytes()[:300])
    dataset = PretrainingDataset(annotations, EvaluationTransform(8))
    loader = DataLoader(dataset, batch_size=6, num_workers=1, collate_fn=PretrainingCollator(tiny_processor))
    batches = iter(loader)
    with pytest.raises(ImageReadError, match=r"train.json, record 3: cannot read the image .*3\.png"):
        next(batches)
    # An iterator that is left unfinished keeps its worker for five seconds.
    assert next(batches, None) is None


# Collator


def make_item(caption="a dog", concepts=(), image_id=0):
    return {"pixel_values": torch.zeros(3, 4, 4), "caption": caption, "concepts": list(concepts), "image_id": image_id}


def test_batch(tiny_processor):
    tokenizer = tiny_processor.tokenizer
    batch = PretrainingCollator(tiny_processor)(
        [make_item("a red dog", ["dog", "grass"], image_id=2**40), make_item("two", image_id=5)]
    )
    assert set(batch) == {
        "pixel_values",
        "input_ids",
        "attention_mask",
        "concept_input_ids",
        "concept_attention_mask",
        "image_ids",
        "return_loss",
    }
    assert batch["pixel_values"].shape == (2, 3, 4, 4)
    assert tokenizer.decode(batch["input_ids"][0]) == "[CLS] a red dog [SEP]"
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert tokenizer.decode(batch["concept_input_ids"][0]) == "[CLS] dog grass [SEP]"
    assert batch["concept_attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert batch["concept_input_ids"][1].tolist() == [tokenizer.pad_token_id] * 4
    assert batch["image_ids"].tolist() == [2**40, 5]
    assert batch["return_loss"] is True
    integers = batch.keys() - {"pixel_values", "return_loss"}
    assert all(batch[name].dtype == torch.int64 for name in integers)


def test_lengths_are_limited(tiny_processor):
    batch = PretrainingCollator(tiny_processor)([make_item("a dog " * 20, ["dog"] * 40)])
    assert batch["input_ids"].shape == (1, 8) and batch["concept_input_ids"].shape == (1, 10)


def test_concepts_are_always_there_or_never(tiny_processor):
    batch = PretrainingCollator(tiny_processor)([make_item(), make_item()])
    assert batch["concept_attention_mask"].tolist() == [[0], [0]]
    assert batch["concept_input_ids"].dtype == batch["concept_attention_mask"].dtype == torch.int64
    batch = PretrainingCollator(tiny_processor, with_concepts=False)([make_item(concepts=["dog"])])
    assert "concept_input_ids" not in batch
