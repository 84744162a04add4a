"""Records of grounding: boxes are checked against their images, and RefCOCO+'s own files are joined."""

import json
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from vicha_hf.data.annotations_grounding import read_grounding_records
from vicha_hf.data.annotations_refcoco import RefCocoSource
from vicha_hf.data.image_files import read_image_size
from vicha_hf.data.raw_records import AnnotationError


# images/0.png is 50 wide and 40 high.
GOOD = {
    "ref_id": 5,
    "image": "images/0.png",
    "text": "the red dog",
    "bbox": [10, 20, 40, 20],
    "boxes": [[0, 0, 5.5, 5], [10, 20, 40, 20]],
    "split": "val",
}


def good(**changes):
    return {name: value for name, value in (GOOD | changes).items() if value is not ...}


def test_all_fields(write_json, image_folder):
    records = [good(concepts=["dog"]), good(image="images/1.png", ref_id="b"), good(text="the tail", split=...)]
    first, second, third = read_grounding_records(write_json(records), for_evaluation=True)
    assert first.image == str(image_folder / "images" / "0.png")
    assert (first.ref_id, first.text, first.split, first.concepts) == (5, "the red dog", "val", ("dog",))
    assert first.box == (10, 20, 40, 20) and first.boxes == ((0, 0, 5.5, 5), (10, 20, 40, 20))
    assert first.image_size == (40, 50) and second.image_size == (41, 49)
    assert [record.image_id for record in (first, second, third)] == [0, 1, 0]
    assert third.split == "all" and third.captions == ("the tail",)


def test_training_reads_no_boxes(write_json):
    path = write_json([good(bbox=..., boxes=...)])
    record = read_grounding_records(path)[0]
    assert (record.box, record.boxes, record.image_size) == (None, (), None)
    with pytest.raises(AnnotationError, match=r"record 0: field 'bbox': missing .*; give \[x, y, width, height\]"):
        read_grounding_records(path, for_evaluation=True)
    broken = write_json([good(bbox=[0, 0, 0, 4], boxes="none")], "broken.json")
    assert read_grounding_records(broken)[0].boxes == ()
    with pytest.raises(AnnotationError, match=r"field 'bbox': a box without area"):
        read_grounding_records(broken, for_evaluation=True)


def test_proposals_without_area_are_left_out(write_json):
    path = write_json([good(boxes=[[0, 0, 4, 4], [0, 0, 4, 0]])])
    annotations = read_grounding_records(path, for_evaluation=True)
    assert annotations[0].boxes == ((0, 0, 4, 4),)
    assert annotations.report.notes == {"field 'boxes': proposals without area left out": 1}


def test_splits_that_were_not_asked_for_do_not_count(write_json):
    path = write_json([good(split=name) for name in ("train", "val", "testA", "val")])
    annotations = read_grounding_records(path, splits=["val"], for_evaluation=True)
    assert (len(annotations), annotations.report.num_read, annotations.report.num_skipped) == (2, 2, 0)
    with pytest.raises(AnnotationError, match=r"no split 'testB'; choose among \['testA', 'train', 'val'\]"):
        read_grounding_records(path, splits=["testB"])
    with pytest.raises(AnnotationError, match="field 'split': missing"):
        read_grounding_records(write_json([good(split=...)]), splits=["val"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"text": "..."}, r"field 'text': empty"),
        ({"image": "images/none.png"}, r"field 'image': file not found"),
        ({"bbox": [1, 2, 3]}, r"field 'bbox': not a box \(got list \[1, 2, 3\]\)"),
        ({"bbox": [1, 2, 3, "4"]}, r"field 'bbox': not a box"),
        ({"bbox": [1, 2, 3, float("nan")]}, r"field 'bbox': not a box"),
        ({"bbox": [1, 2, 3, 0]}, r"field 'bbox': a box without area"),
        ({"bbox": [1, 2, -3, 4]}, r"field 'bbox': a box without area"),
        ({"bbox": [20, 10, 31.5, 5]}, r"field 'bbox': a box outside the image \(\[20, 10, 31.5, 5\] .*width 50"),
        ({"bbox": [0, 36, 5, 6]}, r"field 'bbox': a box outside the image"),
        ({"bbox": [-2, 0, 5, 6]}, r"field 'bbox': a box outside the image"),
        ({"bbox": [0, -1.5, 5, 6]}, r"field 'bbox': a box outside the image"),
        ({"boxes": []}, r"field 'boxes': empty \(an empty list\)"),
        ({"boxes": ...}, r"field 'boxes': missing"),
        ({"boxes": {"a": 1}}, r"field 'boxes': wrong type"),
        ({"boxes": [[0, 0, 0, 4], [0, 0, 4, 0]]}, r"field 'boxes': only boxes without area"),
        ({"boxes": [[0, 0, 4, 4], [48, 0, 4, 4]]}, r"field 'boxes': a box outside the image"),
        ({"width": 8, "height": 8}, r"field 'bbox': a box outside the image .*width 8 and height 8"),
        ({"width": "8", "height": 8}, r"field 'width': not a size"),
        ({"split": 3}, r"field 'split': wrong type"),
    ],
)
def test_bad_record_is_named_and_can_be_left_out(write_json, changes, expected):
    path = write_json([good(), good(**changes)])
    with pytest.raises(AnnotationError, match=rf"train.json, record 1: {expected}"):
        read_grounding_records(path, for_evaluation=True)
    annotations = read_grounding_records(path, for_evaluation=True, on_bad_record="skip")
    assert (annotations.report.num_kept, annotations.report.num_skipped) == (1, 1)


def test_boxes_may_stick_out_by_a_rounded_pixel(write_json):
    boxes = [[-1, -0.5, 52, 41.4], [0, 0, 51, 41]]
    assert len(read_grounding_records(write_json([good(boxes=boxes)]), for_evaluation=True)) == 1


def test_unreadable_image_is_named(write_json, image_folder):
    (image_folder / "images" / "9.png").write_bytes(b"not an image")
    with pytest.raises(AnnotationError, match=r"record 0: field 'image': not an image \(cannot identify"):
        read_grounding_records(write_json([good(image="images/9.png")]), for_evaluation=True)


def test_size_is_that_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.png", exif=exif)
    Image.new("RGB", (30, 20)).save(tmp_path / "plain.png")
    sizes = [read_image_size(str(tmp_path / name), "here") for name in ("turned.jpg", "turned.png", "plain.png")]
    assert sizes == [(30, 20), (30, 20), (20, 30)]


@pytest.fixture
def refcoco(image_folder):
    """Three things with an area in two images, two refs, three sentences."""

    def write(**changes):
        contents = {
            "refs": [
                {
                    "ref_id": 50,
                    "ann_id": 7,
                    "image_id": 100,
                    "split": "val",
                    "sentences": [{"sent": "red dog"}, {"sent": "the dog"}],
                },
                {"ref_id": 51, "ann_id": 9, "image_id": 101, "split": "testA", "sentences": [{"sent": "cat"}]},
            ],
            "instances": {
                "images": [
                    {"id": 100, "file_name": "0.png", "width": 50, "height": 40},
                    {"id": 101, "file_name": "1.png", "width": 49, "height": 41},
                ],
                "annotations": [
                    {"id": 7, "image_id": 100, "bbox": [1, 2, 3, 4]},
                    {"id": 8, "image_id": 100, "bbox": [5, 6, 7, 8]},
                    {"id": 9, "image_id": 101, "bbox": [9, 8, 7, 6]},
                    # COCO's instances hold boxes of height 0.
                    {"id": 10, "image_id": 101, "bbox": [9, 8, 7, 0]},
                ],
            },
        } | changes
        paths = {}
        for name, content in contents.items():
            paths[name] = str(image_folder / f"{name}.json")
            (image_folder / f"{name}.json").write_text(json.dumps(content))
        return {**paths, "images": str(image_folder / "images")}

    return write


def test_refcoco_files_are_joined(refcoco, image_folder):
    annotations = read_grounding_records(refcoco(), for_evaluation=True)
    records = list(annotations)
    assert records[2].boxes == ((9, 8, 7, 6),) and not annotations.report.notes
    assert [record.text for record in records] == ["red dog", "the dog", "cat"]
    assert [record.split for record in records] == ["val", "val", "testA"]
    assert [record.box for record in records] == [(1, 2, 3, 4), (1, 2, 3, 4), (9, 8, 7, 6)]
    assert records[0].boxes == ((1, 2, 3, 4), (5, 6, 7, 8))
    assert records[2].image == str(image_folder / "images" / "1.png") and records[2].ref_id == 51
    assert [record.image_id for record in records] == [0, 0, 1]
    assert len(read_grounding_records([RefCocoSource(**refcoco())], splits=("testA",))) == 1


@pytest.mark.parametrize(
    "detections",
    [
        {"100": [{"box": [1, 1, 2, 2], "score": 0.9}], "101": [{"box": [3, 3, 4, 4]}]},
        [{"image_id": 100, "box": [1, 1, 2, 2], "score": 0.9}, {"image_id": 101, "box": [3, 3, 4, 4]}],
    ],
)
def test_a_detectors_boxes_are_the_proposals(refcoco, detections):
    records = list(read_grounding_records(refcoco(detections=detections), for_evaluation=True))
    assert [record.boxes for record in records] == [((1, 1, 2, 2),), ((1, 1, 2, 2),), ((3, 3, 4, 4),)]


def test_refcoco_problems_are_named(refcoco, image_folder):
    flat = [{"ref_id": 1, "ann_id": 10, "image_id": 101, "split": "val", "sentences": [{"sent": "a"}]}]
    with pytest.raises(AnnotationError, match=r"refs.json, record 0: field 'bbox': a box without area"):
        read_grounding_records(refcoco(refs=flat), for_evaluation=True)
    refs = [{"ref_id": 1, "ann_id": 70, "image_id": 100, "split": "val", "sentences": [{"sent": "a"}]}]
    with pytest.raises(AnnotationError, match=r"refs.json, record 0: field 'ann_id': not among the instances"):
        read_grounding_records(refcoco(refs=refs))
    refs[0] |= {"ann_id": 7, "sentences": []}
    with pytest.raises(AnnotationError, match=r"record 0: field 'sentences': empty"):
        read_grounding_records(refcoco(refs=refs))
    with pytest.raises(AnnotationError, match=r"record 0: field 'boxes': empty"):
        read_grounding_records(refcoco(detections={"7": []}), for_evaluation=True)
    with pytest.raises(AnnotationError, match=r"detections.json, entry 0: fields 'image_id' and 'box' expected"):
        read_grounding_records(refcoco(detections={"100": [[1, 2, 3, 4]]}), for_evaluation=True)
    with pytest.raises(AnnotationError, match=r"instances.json: field 'annotations': no list"):
        read_grounding_records(refcoco(instances={"images": []}))
    paths = refcoco()
    with pytest.raises(AnnotationError, match="a mapping with refs, instances and images"):
        read_grounding_records({"refs": paths["refs"], "instances": paths["instances"]})
    with pytest.raises(AnnotationError, match=r"annotation file not found: .*none.json"):
        read_grounding_records(paths | {"instances": str(image_folder / "none.json")})


def test_pickles_are_read_without_running_anything(refcoco, image_folder):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (image_folder.joinpath("exploded").touch, ())

    source = refcoco()
    refs = json.loads(Path(source["refs"]).read_text())
    path = image_folder / "refs(unc).p"
    for protocol in (0, 2, 5):
        path.write_bytes(pickle.dumps(refs, protocol))
        read = read_grounding_records(source | {"refs": str(path)})
        assert [one.text for one in read] == [one.text for one in read_grounding_records(source)]
    # A text of Python 2.
    path.write_bytes(pickle.dumps(refs, 2).replace(b"X\x03\x00\x00\x00val", b"U\x03val"))
    assert read_grounding_records(source | {"refs": str(path)}, splits=["val"])
    for content, expected in (
        (pickle.dumps(Bomb()), "it asks for builtins.getattr"),
        (pickle.dumps({"a": 1}), "must hold a list of refs"),
        (b"no pickle", "not readable as a pickle"),
        (pickle.dumps(refs)[:40], "not readable as a pickle"),
        (b"", "not readable as a pickle"),
    ):
        path.write_bytes(content)
        with pytest.raises(AnnotationError, match=rf"refs\(unc\).p: .*{expected}"):
            read_grounding_records(source | {"refs": str(path)})
    assert not (image_folder / "exploded").exists()
