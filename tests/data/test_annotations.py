import json
import logging
import pickle
from dataclasses import dataclass

import datasets
import pytest
from PIL import Image

from vicha_hf.data.annotation_sources import CorpusSource
from vicha_hf.data.annotations import read_image_text_records, read_records
from vicha_hf.data.image_files import ImageReadError
from vicha_hf.data.raw_records import AnnotationError, RecordProblem
from vicha_hf.data.stored_images import EmbeddedImage


def good_record(**changes):
    record = {"image": "images/0.png", "caption": "a dog"} | changes
    return {name: value for name, value in record.items() if value is not ...}


def test_json_list(write_json, image_records, image_folder):
    annotations = read_image_text_records(write_json(image_records))
    assert len(annotations) == 6
    record = annotations[4]
    assert record.image == str(image_folder / "images" / "4.png")
    assert record.captions == ("A red dog, photo 0!", "A red dog, photo 1!")
    assert record.concepts == ("dog", "cat", "grass", "tree")
    assert record.image_id == 4
    assert record.load_image().size == (46, 44)
    assert annotations.report.num_read == annotations.report.num_kept == 6
    assert not annotations.report.causes


def test_jsonl_equals_json_list(write_json, image_records):
    lines = "\n\n".join(json.dumps(record) for record in image_records) + "\n"
    from_lines = read_image_text_records(write_json(lines, "train.jsonl"))
    from_list = read_image_text_records(write_json(image_records))
    for one, other in zip(from_lines, from_list, strict=True):
        assert (one.image, one.captions, one.concepts, one.image_id) == (
            other.image,
            other.captions,
            other.concepts,
            other.image_id,
        )


def test_concepts_by_either_name_without_repetitions(write_json):
    path = write_json(
        [
            good_record(kwords=["dog", "cat", " dog", "snow"]),
            good_record(concepts=["tree"], kwords=["dog"]),
            good_record(concepts=None),
            good_record(),
        ]
    )
    assert [record.concepts for record in read_image_text_records(path)] == [("dog", "cat", "snow"), ("tree",), (), ()]


def test_files_are_concatenated_and_image_root_moves(write_json, image_folder, image_records):
    (image_folder / "annotations").mkdir()
    elsewhere = write_json(image_records[:2], "annotations/a.json")
    beside = write_json(image_records[2:], "b.json")
    with pytest.raises(AnnotationError, match=r"file not found.*image_root"):
        read_image_text_records([elsewhere, beside])
    annotations = read_image_text_records([elsewhere, str(beside)], image_root=image_folder)
    assert [record.image_id for record in annotations] == list(range(6))
    assert annotations[0].where.endswith("a.json, record 0") and annotations[2].where.endswith("b.json, record 0")


def test_image_numbers(write_json):
    first = write_json(
        [
            good_record(image="images/0.png", image_id="coco_17"),
            good_record(image="images/1.png", image_id=17),
            good_record(image="images/2.png", image_id=["nested", {"id": 17}]),
            good_record(image="images/3.png", image_id=17),  # as record 1
            good_record(image="./images/0.png"),  # as record 0, by its path
            good_record(image="images/4.png", image_id="17"),  # text, not number: a new image
            good_record(image="images/2.png", image_id=["nested", {"id": 17}]),
        ],
        "a.json",
    )
    second = write_json([good_record(image="images/5.png", image_id=17), good_record(image="images/1.png")], "b.json")
    numbers = [record.image_id for record in read_image_text_records([first, second])]
    assert numbers == [0, 1, 2, 1, 0, 3, 2, 4, 1]
    assert numbers == [record.image_id for record in read_image_text_records([first, second])]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (good_record(image=...), r"field 'image': missing \(the record has \['caption'\]\); give the path"),
        (good_record(image=None), r"field 'image': missing \(its value is null\)"),
        (good_record(image=7), r"field 'image': wrong type \(got int 7\)"),
        (good_record(image=" "), r"field 'image': empty"),
        (good_record(image="images/none.png"), r"field 'image': file not found \(.*images/none.png\); add the file"),
        (good_record(caption=...), r"field 'caption': missing"),
        (good_record(caption=3), r"field 'caption': wrong type \(got int 3\)"),
        (good_record(caption={"text": "a"}), r"field 'caption': wrong type \(got dict"),
        (good_record(caption=["a", None]), r"field 'caption': wrong type \(got NoneType None\)"),
        (good_record(caption=[]), r"field 'caption': empty \(an empty list\)"),
        (good_record(caption=""), r"field 'caption': empty"),
        (good_record(caption=["a dog", " ...!"]), r"field 'caption': empty \(' ...!' holds no word\)"),
        (
            good_record(concepts="dog, cat"),
            r"field 'concepts': wrong type \(got str 'dog, cat'\); write a list of words",
        ),
        (good_record(kwords=["dog", 3]), r"field 'kwords': wrong type \(got int 3\)"),
        (good_record(concepts=["dog", ""]), r"field 'concepts': an empty concept"),
        ([1, 2], r"not an object \(got list \[1, 2\]\)"),
    ],
)
def test_bad_record_is_named(write_json, record, expected):
    path = write_json([good_record(), record])
    with pytest.raises(AnnotationError, match=rf"train.json, record 1: {expected}"):
        read_image_text_records(path)
    annotations = read_image_text_records(path, on_bad_record="skip")
    assert (annotations.report.num_read, annotations.report.num_kept, annotations.report.num_skipped) == (2, 1, 1)


def test_skipping_is_counted_by_cause_and_logged(write_json, caplog):
    bad = [
        good_record(caption=""),
        good_record(image="images/none.png"),
        good_record(caption=" "),
        good_record(image=3),
    ]
    path = write_json([good_record(image="images/1.png"), *bad, good_record(image="images/2.png")])
    logger = logging.getLogger("vicha_hf.data.annotations")
    logger.addHandler(caplog.handler)
    try:
        annotations = read_image_text_records(path, on_bad_record="skip")
    finally:
        logger.removeHandler(caplog.handler)
    assert annotations.report.causes == {
        "field 'caption': empty": 2,
        "field 'image': file not found": 1,
        "field 'image': wrong type": 1,
    }
    assert "2 of 6 records usable, 4 not" in caplog.text and "2 x field 'caption': empty" in caplog.text
    # Skipped records leave no gap in the numbers of the images.
    assert [record.image_id for record in annotations] == [0, 1]
    assert [record.where.split(", ")[1] for record in annotations] == ["record 0", "record 5"]


def test_many_problems_are_summed_up(write_json):
    path = write_json([good_record(caption="")] * 25)
    with pytest.raises(AnnotationError) as error:
        read_image_text_records(path)
    message = str(error.value)
    assert message.endswith("0 of 25 records usable, 25 not: 25 x field 'caption': empty.")
    # The message is shown on one line: it names one record.
    assert message.count("train.json, record") == 1 and "\n" not in message
    with pytest.raises(AnnotationError, match=r"no usable record in .*train.json") as error:
        read_image_text_records(path, on_bad_record="skip")
    assert str(error.value).count("e.g.") == 3


def test_every_cause_has_its_examples(write_json):
    bad = [good_record(caption="")] * 25 + [good_record(image=3)]
    records = read_image_text_records(write_json([*bad, good_record()]), on_bad_record="skip")
    told = records.report.summary()
    assert told.count("e.g.") == 4 and "record 25: field 'image'" in told


def test_broken_jsonl_line_is_named_and_can_be_skipped(write_json):
    path = write_json(f'{json.dumps(good_record())}\n\n{{"image": \n{json.dumps(good_record())}\n', "train.jsonl")
    with pytest.raises(AnnotationError, match=r"train.jsonl, record 1 \(line 3\): not readable as JSON"):
        read_image_text_records(path)
    annotations = read_image_text_records(path, on_bad_record="skip")
    assert len(annotations) == 2 and annotations.report.causes == {"not readable as JSON": 1}


@pytest.mark.parametrize("mode", ["raise", "skip"])
def test_unusable_files_are_errors_in_both_modes(write_json, tmp_path, mode):
    with pytest.raises(AnnotationError, match=r"not found: .*none\.json; check the path"):
        read_image_text_records(tmp_path / "none.json", on_bad_record=mode)
    with pytest.raises(AnnotationError, match=r"broken\.json: not readable as JSON \(.*line 1"):
        read_image_text_records(write_json("[{]", "broken.json"), on_bad_record=mode)
    with pytest.raises(AnnotationError, match="the top level must be a list of records, got dict"):
        read_image_text_records(write_json({"images": []}), on_bad_record=mode)
    with pytest.raises(AnnotationError, match="no usable record"):
        read_image_text_records(write_json([]), on_bad_record=mode)
    with pytest.raises(AnnotationError, match="no annotation source"):
        read_image_text_records([], on_bad_record=mode)
    with pytest.raises(TypeError, match=r"an annotation source must be a path.*got int"):
        read_image_text_records(3, on_bad_record=mode)


def test_latin_1_file_is_named(image_folder):
    path = image_folder / "latin.json"
    path.write_bytes(json.dumps([good_record(caption="café")], ensure_ascii=False).encode("latin-1"))
    with pytest.raises(AnnotationError, match=r"latin\.json: not readable as JSON"):
        read_image_text_records(path)


def test_unknown_mode(write_json):
    with pytest.raises(ValueError, match="on_bad_record='ignore'"):
        read_image_text_records(write_json([good_record()]), on_bad_record="ignore")


def test_image_check_can_be_left_to_loading(write_json, image_folder):
    (image_folder / "images" / "text.png").write_text("no image")
    cut = (image_folder / "images" / "0.png").read_bytes()
    (image_folder / "images" / "cut.png").write_bytes(cut[: len(cut) // 2])
    names = ["images/none.png", "images/text.png", "images/cut.png"]
    annotations = read_image_text_records(write_json([good_record(image=name) for name in names]), check_images=False)
    for index, name in enumerate(names):
        with pytest.raises(ImageReadError, match=rf"train.json, record {index}: cannot read the image .*{name}"):
            annotations[index].load_image()


def test_images_are_upright_rgb(write_json, image_folder):
    image = Image.new("RGBA", (30, 20), (255, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(image_folder / "images" / "turned.png", exif=exif)
    loaded = read_image_text_records(write_json([good_record(image="images/turned.png")]))[0].load_image()
    assert (loaded.size, loaded.mode, loaded.getpixel((0, 0))) == ((20, 30), "RGB", (255, 255, 255))


# Hugging Face datasets


@pytest.fixture
def hub_dataset(image_folder, image_records):
    """Images stored inside, as datasets from the Hub have them; the column of texts has another name."""
    rows = [
        {
            "image": str(image_folder / row["image"]),
            "text": row["caption"],
            "concepts": row["concepts"],
            "image_id": 7,
        }
        for row in image_records
    ]
    dataset = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    dataset.save_to_disk(image_folder / "saved")
    return datasets.load_from_disk(image_folder / "saved")


def test_dataset_with_stored_images(hub_dataset, image_folder, write_json, image_records):
    for file in (image_folder / "images").iterdir():
        file.rename(image_folder / file.name)  # what the dataset holds must be enough
    source = {"path": str(image_folder / "saved"), "columns": {"caption": "text"}}
    annotations = read_image_text_records(source)
    assert [record.captions for record in annotations] == [tuple(row["caption"]) for row in image_records]
    assert [record.concepts for record in annotations] == [tuple(row["concepts"]) for row in image_records]
    assert {record.image_id for record in annotations} == {0}  # the column says that all are the same image
    record = annotations[3]
    assert isinstance(record.image, EmbeddedImage)
    assert record.load_image().tobytes() == Image.open(image_folder / "3.png").tobytes()
    # Workers receive the records pickled; the dataset must travel once, not with every record.
    copy = pickle.loads(pickle.dumps(annotations))
    assert copy[3].load_image().tobytes() == record.load_image().tobytes()
    assert copy[0].image.images is copy[5].image.images


def test_stored_images_without_an_id_are_all_different(hub_dataset):
    dataset = hub_dataset.rename_column("text", "caption").remove_columns("image_id")
    assert [record.image_id for record in read_image_text_records(dataset)] == list(range(6))


def test_selected_rows_of_a_dataset(hub_dataset, image_folder):
    dataset = hub_dataset.rename_column("text", "caption").select([4, 2])
    annotations = read_image_text_records(dataset)
    expected = [Image.open(image_folder / "images" / f"{number}.png").size for number in (4, 2)]
    assert [record.load_image().size for record in annotations] == expected


def test_dataset_of_paths(image_folder, image_records):
    dataset = datasets.Dataset.from_list(image_records)
    annotations = read_image_text_records(dataset, image_root=image_folder)
    assert annotations[1].image == str(image_folder / "images" / "1.png")
    cast = datasets.Dataset.from_list(
        [{**row, "image": str(image_folder / row["image"])} for row in image_records]
    ).cast_column("image", datasets.Image())
    assert [record.image for record in read_image_text_records(cast)] == [record.image for record in annotations]
    (image_folder / "images" / "1.png").unlink()
    for source in (dataset, cast):
        with pytest.raises(AnnotationError, match=r"dataset in memory, record 1: field 'image': file not found"):
            read_image_text_records(source, image_root=image_folder)


def test_truncated_stored_image_is_named(image_folder):
    content = (image_folder / "images" / "0.png").read_bytes()
    rows = {"image": [{"bytes": content[:200], "path": None}], "caption": ["a dog"]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    with pytest.raises(ImageReadError, match=r"record 0: cannot read the image in column 'image', row 0"):
        read_image_text_records(dataset)[0].load_image()


def test_splits_on_disk(hub_dataset, image_folder):
    splits = datasets.DatasetDict({"train": hub_dataset, "test": hub_dataset.select([0])})
    splits.save_to_disk(image_folder / "splits")
    columns = {"caption": "text"}
    path = str(image_folder / "splits")
    assert len(read_image_text_records(CorpusSource(path, split="test", columns=columns))) == 1
    with pytest.raises(AnnotationError, match=r"no split 'validation'; choose among \['test', 'train'\]"):
        read_image_text_records(CorpusSource(path, split="validation", columns=columns))
    with pytest.raises(AnnotationError, match=r"this one has \['train', 'test'\]; of a DatasetDict choose one split"):
        read_image_text_records(splits)
    with pytest.raises(AnnotationError, match=r"this one has \['path', 'column'\]; did you mean columns\?"):
        read_image_text_records({"path": path, "column": {}})
    with pytest.raises(TypeError, match="not streamed"):
        read_image_text_records(hub_dataset.to_iterable_dataset())


def test_wrong_column_is_named(hub_dataset, image_folder):
    with pytest.raises(AnnotationError, match=r"saved: no column 'title' for the field 'caption'; choose among"):
        read_image_text_records({"path": str(image_folder / "saved"), "columns": {"caption": "title"}})
    with pytest.raises(AnnotationError, match=r"nothing but images.*add a column of texts"):
        read_image_text_records(hub_dataset.select_columns(["image"]))


@dataclass(frozen=True)
class Judged:
    image: str
    label: int
    where: str


def test_other_tasks_bring_their_own_parser(write_json):
    def parse(fields, raw):
        if "label" not in fields:
            raise RecordProblem("label", "missing", "write 0 or 1")
        return Judged("a.jpg", fields["label"], raw.where)

    path = write_json([{"label": 1}, {}, {"label": 0}])
    kept = read_records(path, None, Judged, parse, {"on_bad_record": "skip"}, {})
    assert [(one.label, one.where[-8:]) for one in kept] == [(1, "record 0"), (0, "record 2")]
    with pytest.raises(AnnotationError, match="record 1: field 'label': missing; write 0 or 1"):
        read_records(path, None, Judged, parse, {}, {})


@pytest.mark.parametrize("name", ["cut.jsonl", "cut.json"])
def test_a_file_cut_at_any_byte_loses_nothing_in_silence(name, write_json):
    records = [good_record(caption=caption) for caption in ("a dog", "zwei Bäume", "c")]
    if name.endswith("l"):
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        whole = "\n".join(lines).encode()
        # A file may end behind a line; what is missing then cannot be seen.
        ends = {len("\n".join(lines[:number]).encode()): number for number in (1, 2, 3)}
        ends |= {length + 1: number for length, number in ends.items() if number < 3}
    else:
        whole = json.dumps(records, ensure_ascii=False).encode()
        ends = {len(whole): 3}
    path = write_json("", name)
    for length in range(1, len(whole) + 1):
        path.write_bytes(whole[:length])
        if length in ends:
            assert len(read_image_text_records(path)) == ends[length]
        else:
            place = f"{path}, record {whole[:length].count(b'{') - 1}" if name.endswith("l") else str(path)
            with pytest.raises(AnnotationError, match=r"not readable as JSON|UTF-8") as error:
                read_image_text_records(path)
            assert str(error.value).startswith(place)
