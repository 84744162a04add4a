"""One schema from every kind of source, with its own folder, split, columns and weight."""

import json
import multiprocessing
import os
from pathlib import Path

import datasets
import pytest
from PIL import Image

from vicha_hf.data import record_cache
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.annotations_entailment import read_entailment_records
from vicha_hf.data.annotations_reasoning import read_reasoning_records
from vicha_hf.data.annotations_vqa import read_question_records
from vicha_hf.data.corpus_check import check_corpus
from vicha_hf.data.datasets_pretraining import PretrainingDataset
from vicha_hf.data.mixture import WeightedMixture
from vicha_hf.data.raw_records import AnnotationError
from vicha_hf.data.read_report import shown_fields
from vicha_hf.data.transforms import EvaluationTransform


def facts(annotations):
    return [(Path(str(one.image)).name, one.captions, one.concepts) for one in annotations]


@pytest.fixture
def expected():
    return [(f"{number}.png", (f"dog, no. {number}",), ("dog", "cat")[:number]) for number in range(3)]


@pytest.fixture
def records(expected):
    return [
        {"image": f"images/{name}", "caption": captions[0], "concepts": list(concepts)}
        for name, captions, concepts in expected
    ]


def test_every_kind_of_file_says_the_same(image_folder, records, expected):
    (image_folder / "a.json").write_text(json.dumps(records))
    (image_folder / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    rows = [[one["image"], one["caption"], json.dumps(one["concepts"])] for one in records]
    (image_folder / "a.tsv").write_text(
        "".join("\t".join(row) + "\n" for row in [["image", "caption", "concepts"], *rows])
    )
    table = [
        "file_name,text,concepts",
        *(f'{image},"{caption}","{",".join(json.loads(words))}"' for image, caption, words in rows),
    ]
    (image_folder / "a.csv").write_text("\n".join(table) + "\n")
    datasets.Dataset.from_list(records).to_parquet(str(image_folder / "a.parquet"))
    for name in ("a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet"):
        assert facts(read_image_text_records(image_folder / name)) == expected, name
        assert facts(read_image_text_records(str(image_folder / name).replace("a.", "?."))) == expected, name
        renamed = {"path": str(image_folder / name), "columns": {"caption": "image"}}
        assert read_image_text_records(renamed)[0].captions == ("images/0.png",)


def test_patterns_and_folders_of_files(image_folder, records, expected):
    for number, record in enumerate(records):
        (image_folder / f"part-{number:03d}.jsonl").write_text(json.dumps(record) + "\n")
        datasets.Dataset.from_list([record]).to_parquet(str(image_folder / f"{number}.parquet"))
    for pattern in ("part-*.jsonl", "part-{000..002}.jsonl", "part-{000,001,002}.jsonl", "*.parquet", ""):
        found = read_image_text_records(str(image_folder / pattern), image_root=image_folder)
        assert facts(found) == expected, pattern
    with pytest.raises(AnnotationError, match=r"part-003.jsonl; check the path"):
        read_image_text_records(str(image_folder / "part-{000..003}.jsonl"))
    with pytest.raises(AnnotationError, match="nothing matches"):
        read_image_text_records(str(image_folder / "other-*.jsonl"))


@pytest.mark.parametrize("captions", ["beside", "metadata.jsonl", "captions.txt", "metadata.csv"])
def test_folders_of_images(image_folder, captions):
    folder = image_folder / "images"
    for file in list(folder.iterdir())[3:]:
        file.unlink()
    names = sorted(path.name for path in folder.iterdir())
    if captions == "beside":
        for name in names:
            (folder / name).with_suffix(".txt").write_text(f"dog {name}\n")
    elif captions == "metadata.jsonl":
        lines = "".join(json.dumps({"image": name, "caption": f"dog {name}"}) + "\n" for name in names)
        (folder / captions).write_text(lines)
    elif captions == "captions.txt":
        (folder / captions).write_text("".join(f"{name}\tdog {name}\n" for name in names))
    else:
        (folder / captions).write_text("file_name,text\n" + "".join(f"{name},dog {name}\n" for name in names))
    read = read_image_text_records(folder)
    assert [(Path(one.image).name, one.captions) for one in read] == [(name, (f"dog {name}",)) for name in names]
    if captions == "beside":
        (folder / names[0]).with_suffix(".txt").unlink()
        with pytest.raises(AnnotationError, match=rf"field 'caption': missing; write the caption of {names[0]} into"):
            read_image_text_records(folder)


def test_a_folder_reads_what_links_lead_to_once_and_nothing_hidden(image_folder):
    folder, elsewhere = image_folder / "images", image_folder / "elsewhere"
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        (folder / name).with_suffix(".txt").write_text(f"dog {name}")
    elsewhere.mkdir()
    (elsewhere / "a").symlink_to(folder)
    (elsewhere / "b").symlink_to(folder)
    (elsewhere / "a" / "circle").symlink_to(elsewhere)
    # As a Mac leaves them on other machines' disks.
    (folder / f"._{names[0]}").write_bytes(b"\0")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / names[0]).write_bytes((folder / names[0]).read_bytes())
    read = read_image_text_records(elsewhere)
    assert [one.image for one in read] == [str(elsewhere / "a" / name) for name in names]


def test_bad_tables_are_named(image_folder):
    path = image_folder / "a.csv"
    path.write_text("image,caption\nimages/0.png,a dog\nimages/1.png\n")
    with pytest.raises(AnnotationError, match=r"a.csv, record 1 \(line 3\): not readable as a row \(1 cells for 2"):
        read_image_text_records(path)
    path.write_text('image,caption\nimages/0.png,a "dog"\nimages/1.png,"a dog\nimages/2.png,a cat\n')
    with pytest.raises(
        AnnotationError, match=r"a.csv, record 1 \(line 3\): .*not closed before the file ends, at line 4"
    ):
        read_image_text_records(path)
    path.write_text('image,caption\nimages/0.png,"a "black" dog"\nimages/1.png,a "black" dog\n')
    left = read_image_text_records(path, on_bad_record="skip")
    assert [one.captions for one in left] == [('a "black" dog',)] and left.report.num_skipped == 1
    path.write_text("image,caption,caption\nimages/0.png,a dog,a cat\n")
    with pytest.raises(AnnotationError, match="names the column 'caption' twice; give each its own name"):
        read_image_text_records(path)
    path.write_text("image,caption\nimages\\0.png,a dog\n")
    with pytest.raises(AnnotationError, match=r"file not found .*; write / between folders, not \\"):
        read_image_text_records(path)
    path.write_text("one,two\n1,2\n")
    with pytest.raises(AnnotationError, match="the first line must name the columns"):
        read_image_text_records(path)
    (image_folder / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(AnnotationError, match=r"a.parquet: not readable as Parquet"):
        read_image_text_records(image_folder / "a.parquet")
    (image_folder / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(AnnotationError, match=r"a.tar, record 0: the shard cannot .* or unpack its compression"):
        read_image_text_records(image_folder / "a.tar")
    (image_folder / "a.xyz").write_text("")
    with pytest.raises(AnnotationError, match="an unknown kind of annotation file"):
        read_image_text_records(image_folder / "a.xyz")


# Folders of images


@pytest.fixture
def two_roots(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), "red" if name == "one" else "blue").save(tmp_path / name / "0.png")
        (tmp_path / f"{name}.json").write_text(json.dumps([{"image": "0.png", "caption": name}]))
    return tmp_path


def test_each_source_may_have_its_own_folder(two_roots, monkeypatch):
    files = [str(two_roots / "one.json"), str(two_roots / "two.json")]
    roots = [str(two_roots / "one"), str(two_roots / "two")]
    colours = [(255, 0, 0), (0, 0, 255)]
    for sources, root in (
        (files, roots),
        ([{"path": path, "image_root": root} for path, root in zip(files, roots, strict=True)], None),
    ):
        read = read_image_text_records(sources, root)
        assert [one.load_image().getpixel((0, 0)) for one in read] == colours
    monkeypatch.setenv("HOME", str(two_roots))
    read = read_image_text_records({"path": "~/one.json", "image_root": "~/one"})
    assert read[0].load_image().getpixel((0, 0)) == colours[0]
    with pytest.raises(AnnotationError, match="image_root names 2 folders for 1 sources"):
        read_image_text_records(files[:1], roots)
    with pytest.raises(AnnotationError, match="is no folder"):
        read_image_text_records(files[:1], str(two_roots / "none"))


def test_paths_that_leave_the_root_are_refused(two_roots):
    inside, outside = two_roots / "one" / "a.json", two_roots / "two" / "0.png"
    for image in ("../two/0.png", "sub/../../two/0.png", str(outside)):
        inside.write_text(json.dumps([{"image": image, "caption": "a"}]))
        with pytest.raises(AnnotationError, match=r"a.json, record 0: field 'image': outside the image root"):
            read_image_text_records(inside)
        allowed = {"allow_outside_root": True, "on_bad_record": "raise"}
        if image.startswith("/"):
            assert read_image_text_records(inside, **allowed)[0].image == str(outside)
        else:
            with pytest.raises(AnnotationError, match="outside the image root"):
                read_image_text_records(inside, **allowed)
    # Below the folder that is named it is inside, however it is written.
    assert len(read_image_text_records(inside, image_root=two_roots)) == 1
    inside.write_text(json.dumps([{"image": str(two_roots / "one" / "0.png"), "caption": "a"}]))
    assert len(read_image_text_records(inside)) == 1
    inside.write_text(json.dumps([{"image": "sub/../0.png", "caption": "a"}]))
    assert len(read_image_text_records(inside)) == 1


# Splits


READERS = {
    "retrieval": (read_image_text_records, {"caption": "a dog"}),
    "vqa": (read_question_records, {"question": "what?", "answer": "dog"}),
    "entailment": (read_entailment_records, {"sentence": "a dog", "label": "neutral"}),
    "reasoning": (
        read_reasoning_records,
        {"images": ["images/0.png", "images/1.png"], "sentence": "a dog", "label": True},
    ),
}


@pytest.mark.parametrize("task", READERS)
def test_splits_are_chosen_alike_for_every_task(write_json, task):
    read, fields = READERS[task]
    record = {"image": "images/0.png"} | fields
    path = str(write_json([record | {"split": split} for split in ("train", "val", "val", "test")]))
    assert len(read(path)) == 4
    assert len(read(path, splits=["val", "test"])) == 3
    assert len(read({"path": path, "split": "val"})) == 2
    for options in ({"sources": path, "splits": ["val", "dev"]}, {"sources": {"path": path, "split": "dev"}}):
        with pytest.raises(AnnotationError, match=r"no split 'dev'; choose among \['test', 'train', 'val'\]"):
            read(**options)
    with pytest.raises(AnnotationError, match="splits=\\[\\] names no split"):
        read(path, splits=[])
    with pytest.raises(AnnotationError, match="field 'split': missing"):
        read(str(write_json([record], "none.json")), splits=["val"])


def test_a_saved_table_has_no_other_split(image_folder, records):
    datasets.Dataset.from_list(records).save_to_disk(image_folder / "saved")
    source = {"path": str(image_folder / "saved"), "image_root": str(image_folder)}
    assert len(read_image_text_records(source)) == 3
    with pytest.raises(AnnotationError, match="no split 'validation'; the folder holds one table"):
        read_image_text_records(source | {"split": "validation"})


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "state"])
def test_a_saved_table_that_is_damaged_is_named(image_folder, records, damage):
    folder = image_folder / "saved"
    datasets.Dataset.from_list(records).save_to_disk(folder)
    (table,) = folder.glob("*.arrow")
    content = table.read_bytes()
    if damage == "gone":
        table.unlink()
    elif damage == "state":
        (folder / "state.json").write_text("{")
    else:
        table.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(AnnotationError, match=r"saved: not readable as a dataset of `save_to_disk` \(.*; save it"):
        read_image_text_records(folder)


# Identifiers


def test_two_images_with_one_id_are_a_mistake_in_evaluation(write_json, image_folder):
    def corpus(*images):
        return write_json([{"image": f"images/{image}", "caption": "a", "image_id": 7} for image in images])

    assert len(read_image_text_records(corpus("0.png", "1.png"))) == 2
    with pytest.raises(
        AnnotationError,
        match=r"record 1: field 'image_id': that of another image \(int 7 is that of .*0.png \(.*record 0\)",
    ):
        read_image_text_records(corpus("0.png", "1.png"), for_evaluation=True)
    # The same image twice, also as a copy, is no other image.
    assert len(read_image_text_records(corpus("0.png", "0.png"), for_evaluation=True)) == 2
    (image_folder / "images" / "copy.png").write_bytes((image_folder / "images" / "0.png").read_bytes())
    assert len(read_image_text_records(corpus("0.png", "copy.png"), for_evaluation=True)) == 2


# Weights


def test_weights_decide_how_often_items_come(write_json, image_folder):
    for name, count in (("a", 30), ("b", 6)):
        write_json(
            [{"image": "images/0.png", "caption": f"{name} {number}"} for number in range(count)], f"{name}.json"
        )
    sources = [{"path": str(image_folder / f"{name}.json"), "weight": weight} for name, weight in (("a", 1), ("b", 2))]
    annotations = read_image_text_records(sources)
    assert (annotations.weights, annotations.records_of_source) == ((1.0, 2.0), (30, 6))
    dataset = PretrainingDataset(annotations, EvaluationTransform(8), seed=1)
    assert len(dataset) == 36
    seen = []
    for epoch in range(5):
        dataset.set_epoch(epoch)
        captions = [dataset[index]["caption"] for index in range(36)]
        assert sum(caption.startswith("a") for caption in captions) == 12
        assert sum(caption.startswith("b") for caption in captions) == 24
        seen += captions
    counts = {caption: seen.count(caption) for caption in seen}
    assert len(counts) == 36
    # 60 of 30 and 120 of 6: every item as often as any other of its source.
    assert {counts[f"a {number}"] for number in range(30)} == {2} and {
        counts[f"b {number}"] for number in range(6)
    } == {20}


def test_mixtures_are_functions_of_epoch_and_place():
    mixture, other = WeightedMixture([5, 3], [0.5, 0.5], 0), WeightedMixture([5, 3], [0.5, 0.5], 0)
    forward = [mixture.item(epoch, place) for epoch in range(6) for place in range(8)]
    backward = [other.item(epoch, place) for epoch in reversed(range(6)) for place in reversed(range(8))]
    assert forward == backward[::-1]
    with pytest.raises(ValueError, match="cannot be mixed"):
        WeightedMixture([0, 3], [1, 0], 0)


# The cache


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Everything is kept, however small."""
    monkeypatch.setattr(record_cache, "SMALLEST_CACHED_BYTES", 1)
    monkeypatch.setattr(record_cache, "HF_HOME", str(tmp_path / "home"))
    return record_cache.cache_folder()


def test_unchanged_files_are_read_once(cache, write_json, image_records, monkeypatch):
    path = write_json(image_records)
    first = read_image_text_records(path)
    assert first.records.path is not None and len(list(cache.glob("*/records.arrow"))) == 1
    from vicha_hf.data.source_files import TextFileSource

    def fail(self):
        raise AssertionError("read again")

    with monkeypatch.context() as patched:
        patched.setattr(TextFileSource, "iterate_records", fail)
        assert list(read_image_text_records(path)) == list(first)
    # Another time, other options, another content: read again.
    os.utime(path, ns=(1, 1))
    read_image_text_records(path)
    read_image_text_records(path, for_evaluation=True)
    write_json(image_records[:2])
    assert len(read_image_text_records(path)) == 2
    assert len(list(cache.glob("*/records.arrow"))) == 4
    assert not list(cache.glob(".*.arrow"))


def test_missing_images_are_looked_for_again(cache, write_json, image_records, image_folder):
    path = write_json([*image_records, {"image": "images/late.png", "caption": "a"}])
    assert len(read_image_text_records(path, on_bad_record="skip")) == 6
    Image.new("RGB", (8, 8)).save(image_folder / "images" / "late.png")
    assert len(read_image_text_records(path, on_bad_record="skip")) == 7


def test_rejected_records_are_known_from_the_cache_too(cache, write_json, image_records):
    path = write_json([*image_records, {"image": "images/0.png", "caption": ""}])
    first, second = (read_image_text_records(path, on_bad_record="skip") for _ in range(2))
    assert second.records.path is not None
    assert second.report == first.report and second.report.causes == {"field 'caption': empty": 1}
    with pytest.raises(AnnotationError, match="record 6: field 'caption': empty"):
        read_image_text_records(path)


def _read(path, home, results):
    record_cache.SMALLEST_CACHED_BYTES, record_cache.HF_HOME = 1, home
    results.put((os.getpid(), [one.captions for one in read_image_text_records(path)]))


def test_two_processes_may_build_it_at_once(cache, write_json, image_records, tmp_path):
    path = write_json(image_records * 300)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_read, args=(path, str(tmp_path / "home"), results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len({pid for pid, _ in found}) == 2 and found[0][1] == found[1][1] and len(found[0][1]) == 1800
    assert len(list(cache.glob("*/records.arrow"))) == 1


def test_a_home_that_cannot_be_written_to_costs_the_cache_only(monkeypatch, write_json, image_records, tmp_path):
    monkeypatch.setattr(record_cache, "SMALLEST_CACHED_BYTES", 1)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(record_cache, "HF_HOME", str(tmp_path / "file"))
    assert len(read_image_text_records(write_json(image_records))) == 6


def test_images_of_shards_are_found_through_the_cache(cache, image_folder, write_json, image_records):
    from vicha_hf.data.packing import PackOptions, pack_corpus

    path = write_json(image_records)
    for kind in ("webdataset", "parquet"):
        pack_corpus(str(path), image_folder / kind, PackOptions(format=kind, num_workers=1, side=None))
        first, second = (read_image_text_records(image_folder / kind) for _ in range(2))
        assert second.records.path is not None
        for one, other in zip(first, second, strict=True):
            assert one.load_image().tobytes() == other.load_image().tobytes()


def test_unknown_fields_are_named_with_the_nearest(write_json, image_records, caplog):
    import logging

    logger = logging.getLogger("vicha_hf.data.annotations")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger.name)
    try:
        read_image_text_records(write_json([record | {"concept": ["dog"], "url": "x"} for record in image_records]))
    finally:
        logger.removeHandler(caplog.handler)
    assert "6 records have a field 'concept', which nothing reads; is it 'concepts'?" in caplog.text
    # One without a near name is told too, and is no warning.
    told = {(record.levelname, record.getMessage()) for record in caplog.records}
    assert ("INFO", "Fields that nothing reads: 'url'") in told


def test_fields_that_nothing_reads_are_shown_up_to_ten():
    assert shown_fields(["a", "b"]) == "'a', 'b'"
    assert shown_fields([str(number) for number in range(12)]).endswith("'8', '9' and 2 more")


def test_a_check_lists_the_fields_that_nothing_reads(write_json, image_records):
    plain = check_corpus(write_json(image_records)).facts()
    assert "nothing reads" not in plain
    told = check_corpus(write_json([record | {"url": "x", "concept": ["dog"]} for record in image_records])).facts()
    assert told == plain + "\nfields that nothing reads: 'concept', 'url'"
