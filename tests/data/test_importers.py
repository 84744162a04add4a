"""Importers, each on a small file in the exact shape that the owner publishes, through the command line."""

import json
import pickle
import zlib

import pytest
from PIL import Image

from vicha_hf.cli import main
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.annotations_entailment import read_entailment_records
from vicha_hf.data.annotations_grounding import read_grounding_records
from vicha_hf.data.annotations_reasoning import read_reasoning_records
from vicha_hf.data.annotations_vqa import read_question_records
from vicha_hf.data.importers.registry import IMPORTERS
from vicha_hf.data.source_license import read_license


@pytest.fixture
def run(tmp_path, capsys):
    """Imports contents that are given by file name; returns records, output and exit status."""

    def run(name, files, *options, images=(), expected_status=0):
        for image in images:
            path = tmp_path / "images" / image
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(path, "PNG" if path.suffix == ".png" else "JPEG")
        for file, content in files.items():
            path = tmp_path / file
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        output = tmp_path / "out.jsonl"
        where = ["--images", str(tmp_path / "images")] if images else []
        argv = ["data", "import", name, *(str(tmp_path / file) for file in files), "--output", str(output), *where]
        status = main([*argv, "--no-progress", "--overwrite", *options])
        printed = capsys.readouterr()
        assert status == expected_status, printed.err
        records = [json.loads(line) for line in output.read_text().split("\n") if line] if output.is_file() else []
        return records, printed.out + printed.err

    run.output = tmp_path / "out.jsonl"
    return run


COCO = {
    "info": {"description": "COCO 2014 Dataset", "year": 2014},
    "licenses": [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}],
    "images": [
        {"license": 5, "file_name": "COCO_val2014_000000391895.jpg", "height": 360, "width": 640, "id": 391895},
        {"license": 5, "file_name": "COCO_val2014_000000060623.jpg", "height": 427, "width": 640, "id": 60623},
        {"license": 5, "file_name": "COCO_val2014_000000000042.jpg", "height": 427, "width": 640, "id": 42},
    ],
    "annotations": [
        {"image_id": 391895, "id": 770337, "caption": "A man with a red helmet on a small moped on a dirt road. "},
        {"image_id": 391895, "id": 771687, "caption": "Man riding a motor bike on a dirt road."},
        {"image_id": 60623, "id": 1, "caption": " "},
        {"image_id": 42, "id": 3, "caption": "a dog"},
        {"image_id": 7, "id": 2, "caption": "of no image"},
    ],
}


def test_coco_captions(run):
    records, printed = run(
        "coco-captions",
        {"captions_val2014.json": COCO},
        images=["val2014/COCO_val2014_000000391895.jpg", "COCO_val2014_000000391895.jpg"],
    )
    assert records == [
        {
            "image": "images/COCO_val2014_000000391895.jpg",
            "image_id": 391895,
            "caption": [
                "A man with a red helmet on a small moped on a dirt road.",
                "Man riding a motor bike on a dirt road.",
            ],
        }
    ]
    assert "1 records taken, 4 left out" in printed
    for cause in ("annotation without caption", "image without caption", "annotation of an unknown image"):
        assert f"1 x {cause}" in printed
    assert "1 x image file not found" in printed
    assert len(read_image_text_records(run.output)[0].captions) == 2


def test_without_a_folder_the_published_names_stay(run):
    records, _ = run("coco-captions", {"captions_val2014.json": COCO})
    assert [record["image"] for record in records] == [
        "COCO_val2014_000000391895.jpg",
        "COCO_val2014_000000000042.jpg",
    ]


def test_files_that_number_their_images_alike(run):
    """COCO and Flickr30k in one file: an id would name two images, which training takes for one."""
    files = {
        f"dataset_{name}.json": {
            "images": [
                {"filename": f"{name}{number}.jpg", key: number, "split": "train", "sentences": [{"raw": "a man"}]}
                for number in (1, 2)
            ],
            "dataset": name,
        }
        for name, key in (("coco", "cocoid"), ("flickr30k", "imgid"))
    }
    records, _ = run("karpathy", files, images=["coco1.jpg", "coco2.jpg", "flickr30k1.jpg", "flickr30k2.jpg"])
    assert [record["image_id"] for record in records] == [1, 2, "flickr30k1.jpg", "flickr30k2.jpg"]


def test_karpathy(run):
    content = {
        "images": [
            {
                "filepath": "val2014",
                "sentids": [770337],
                "filename": "COCO_val2014_000000391895.jpg",
                "imgid": 0,
                "split": split,
                "sentences": [
                    {"tokens": ["a", "man"], "raw": "A man.", "imgid": 0, "sentid": 770337},
                    {"tokens": [], "raw": "", "imgid": 0, "sentid": 770338},
                ],
                "cocoid": 391895,
            }
            for split in ("test", "restval")
        ],
        "dataset": "coco",
    }
    files = {"dataset_coco.json": content}
    records, printed = run("karpathy", files, "--split", "test", images=["val2014/COCO_val2014_000000391895.jpg"])
    assert records == [
        {
            "image": "images/val2014/COCO_val2014_000000391895.jpg",
            "image_id": 391895,
            "caption": ["A man."],
            "split": "test",
        }
    ]
    assert "1 x another split" in printed
    _, printed = run("karpathy", files, "--split", "val", expected_status=1)
    assert "no split 'val'; choose among ['restval', 'test']" in printed


def test_flickr30k(run):
    lines = (
        "1000092795.jpg#0\tTwo young guys .\n1000092795.jpg#1\tTwo men .\nno caption\n10002456.jpg#0\tSeveral men .\n"
    )
    records, printed = run("flickr30k", {"results_20130124.token": lines}, images=["1000092795.jpg", "10002456.jpg"])
    assert [record["caption"] for record in records] == [["Two young guys .", "Two men ."], ["Several men ."]]
    assert "2 records taken, 1 left out" in printed and "line without a tab" in printed


REGIONS = [
    {
        "regions": [
            {
                "region_id": 1382,
                "width": 82,
                "height": 139,
                "image_id": 1,
                "phrase": "the clock is green",
                "y": 57,
                "x": 4,
            },
            {
                "region_id": 1383,
                "width": 82,
                "height": 139,
                "image_id": 1,
                "phrase": "the clock is green",
                "y": 57,
                "x": 4,
            },
            {"region_id": 1384, "width": 82, "height": 139, "image_id": 1, "phrase": "", "y": 57, "x": 4},
        ],
        "id": 1,
    },
    {"regions": [], "id": 2},
]
IMAGE_DATA = [
    {"width": 800, "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg", "height": 600, "image_id": 1}
]


@pytest.mark.parametrize("with_image_data", ["image_id", "id", None])
def test_visual_genome(run, with_image_data):
    files = {"region_descriptions.json": REGIONS}
    if with_image_data:
        files["image_data.json"] = [
            {with_image_data if name == "image_id" else name: value for name, value in one.items()}
            for one in IMAGE_DATA
        ]
    records, printed = run("visual-genome", files, images=["VG_100K_2/1.jpg"])
    assert records == [{"image": "images/VG_100K_2/1.jpg", "image_id": 1, "caption": ["the clock is green"]}]
    assert "1 x region without phrase" in printed and "1 x image without phrase" in printed


@pytest.mark.parametrize("as_json", [True, False])
def test_sbu(run, as_json):
    urls = [f"http://static.flickr.com/2723/{name}.jpg" for name in ("4385058960_b0f291553e", "2", "3")]
    captions = ["a wooden chair in the living room", "", "not downloaded"]
    files = {"urls.txt": "\n".join(urls) + "\n", "captions.txt": "\n".join(captions) + "\n"}
    if as_json:
        files = {"sbu-captions-all.json": {"image_urls": urls, "captions": captions, "user_ids": ["a"] * 3}}
    records, printed = run("sbu", files, images=["4385058960_b0f291553e.jpg"])
    assert [(record["image"], record["caption"]) for record in records] == [
        ("images/4385058960_b0f291553e.jpg", "a wooden chair in the living room")
    ]
    assert "1 x no caption" in printed and "1 x image file not found" in printed


@pytest.mark.parametrize("files", [["empty.txt", "urls.txt"], ["urls.txt", "empty.txt"]])
def test_sbu_with_an_empty_file(run, files):
    contents = {"urls.txt": "http://x.org/1.jpg\n", "empty.txt": ""}
    _, printed = run("sbu", {name: contents[name] for name in files}, expected_status=1)
    assert "1 addresses and 0 captions; they belong together" in printed


def test_lines_that_are_no_use_count_in_the_numbers_of_downloaders(run):
    """What stands behind them would get the image of another caption."""
    lines = ["a bus\thttp://a.org/x.jpg", "no tab", "a dog\thttp://b.org/x.jpg", "a cat\thttp://[c/x.jpg"]
    images = ["00000/000000001.jpg", "00000/000000002.jpg", f"3_{zlib.crc32(b'http://[c/x.jpg')}"]
    for header in ("", "caption\turl\n"):
        records, printed = run("cc3m", {"train.tsv": header + "\n".join(lines) + "\n"}, images=images)
        assert [(record["image"], record["caption"]) for record in records] == [
            ("images/00000/000000002.jpg", "a dog"),
            (f"images/{images[2]}", "a cat"),
        ]
        assert "1 x line that is no caption and address" in printed and "1 x image file not found" in printed


HALF, NUL, NO_WORD = "half \ud83e a character", "a NUL \0 inside", "!?"
BAD_TEXTS = {
    "coco-captions": lambda text: {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(2)],
        "annotations": [{"image_id": 0, "caption": "a dog"}, {"image_id": 1, "caption": text}],
    },
    "karpathy": lambda text: {
        "images": [{"filename": "a.jpg", "sentences": [{"raw": one}]} for one in ("a dog", text)],
    },
    "visual-genome": lambda text: [
        {"id": number, "regions": [{"phrase": one}]} for number, one in enumerate(("a dog", text))
    ],
    "sbu": lambda text: {"image_urls": ["http://x.org/1.jpg", "http://x.org/2.jpg"], "captions": ["a dog", text]},
    "vg-qa": lambda text: [{"id": 1, "qas": [{"question": one, "answer": "a"} for one in ("a dog?", text)]}],
    "albef": lambda text: [{"image": "a.jpg", "caption": one} for one in ("a dog", text)],
}
BAD_LINES = {
    "nlvr2": lambda text: {"identifier": "dev-1-0-0", "sentence": text, "label": "True"},
    "snli-ve": lambda text: {"Flickr30K_ID": "1", "sentence2": text, "gold_label": "neutral"},
}


@pytest.mark.parametrize("name", [*BAD_TEXTS, *BAD_LINES])
def test_texts_that_readers_refuse_are_left_out(run, name):
    for text in (HALF, NUL, NO_WORD):
        if name in BAD_TEXTS:
            content = BAD_TEXTS[name](text)
        else:
            content = "\n".join(json.dumps(BAD_LINES[name](one)) for one in ("a dog", text))
        records, printed = run(name, {"a.json": content})
        assert len(records) == 1 and "dog" in json.dumps(records[0]), text
        assert "1 records taken, " in printed and " x " in printed


def test_half_characters_in_other_fields_are_counted_too(run):
    content = [{"image": f"{number}.jpg", "caption": "a dog", "note": [{"x": HALF}][:number]} for number in range(2)]
    records, printed = run("albef", {"a.json": content})
    assert len(records) == 1 and "1 x a text with half a character or a NUL character" in printed


def test_conceptual_captions(run):
    urls = [
        "http://lh6.ggpht.com/a/b/one.jpg",
        "http://x.org/image.jpg",
        "http://y.org/image.jpg",
        "http://z.org/d.jpg?w=1",
    ]
    lines = [f"a caption of {index}\t{url}" for index, url in enumerate(urls)]
    crc = zlib.crc32(urls[2].encode())
    images = ["one.jpg", "image.jpg", "00000/000000001.jpg", f"2_{crc}"]
    records, printed = run("cc3m", {"Train_GCC-training.tsv": "\n".join([*lines, "no address"]) + "\n"}, images=images)
    # A name that two addresses share is never taken for one of them.
    assert [(record["image"], record["caption"]) for record in records] == [
        ("images/one.jpg", "a caption of 0"),
        ("images/00000/000000001.jpg", "a caption of 1"),
        (f"images/2_{crc}", "a caption of 2"),
    ]
    assert "1 x image file not found" in printed and "1 x line that is no caption and address" in printed
    # What Unicode counts as an end of a line stands inside captions.
    records, _ = run("cc3m", {"odd.tsv": "one\u2028two\x85three\x0cfour\thttp://x.org/odd.jpg\n"})
    assert records == [{"image": "odd.jpg", "caption": "one\u2028two\x85three\x0cfour", "url": "http://x.org/odd.jpg"}]
    turned = "".join(f"{url}\t{index}\n" for index, url in enumerate(urls[:1]))
    records, _ = run("cc3m", {"cc12m.tsv": turned})
    assert records == [{"image": "one.jpg", "caption": "0", "url": urls[0]}]


def test_vqa_v2(run):
    shared = {"info": {}, "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    questions = shared | {
        "task_type": "Open-Ended",
        "questions": [
            {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
            {"image_id": 262148, "question": "What?", "question_id": 262148001},
        ],
    }
    answers = [{"answer": "down", "answer_confidence": "yes", "answer_id": index} for index in range(1, 11)]
    annotations = shared | {
        "annotations": [
            {
                "question_type": "none of the above",
                "multiple_choice_answer": "down",
                "answers": answers,
                "image_id": 262148,
                "answer_type": "other",
                "question_id": 262148000,
            }
        ]
    }
    files = {"questions.json": questions, "annotations.json": annotations}
    records, printed = run("vqa-v2", files, images=["val2014/COCO_val2014_000000262148.jpg"])
    assert records == [
        {
            "image": "images/val2014/COCO_val2014_000000262148.jpg",
            "image_id": 262148,
            "question_id": 262148000,
            "question": "Where is he looking?",
            "answer": ["down"] * 10,
            "question_type": "none of the above",
            "answer_type": "other",
            "dataset": "vqa",
        }
    ]
    assert "1 x question without annotation" in printed
    assert read_question_records(run.output, for_evaluation=True)[0].answers == ("down",) * 10
    test = questions | {"data_subtype": "test-dev2015"}
    for subset in ("test2015", "test-dev2015"):
        records, _ = run("vqa-v2", {"test.json": test | {"data_subtype": subset}})
        assert records[0]["image"] == "test2015/COCO_test2015_000000262148.jpg" and "answer" not in records[0]
    scenes = test | {"data_type": "abstract_v002", "data_subtype": "val2015"}
    records, _ = run("vqa-v2", {"test.json": scenes})
    assert records[0]["image"] == "val2015/abstract_v002_val2015_000000262148.png"


def test_vqa_without_a_number_takes_no_other_answer(run):
    question = {"image_id": 1, "question": "What?", "question_id": [7]}
    annotation = {"answers": [{"answer": "down"}], "image_id": 1, "question_id": None}
    files = {
        "questions.json": {"data_type": "mscoco", "data_subtype": "val2014", "questions": [question]},
        "annotations.json": {"annotations": [annotation, annotation | {"question_id": 3}]},
    }
    images = ["val2014/COCO_val2014_000000000001.jpg"]
    _, printed = run("vqa-v2", files, images=images, expected_status=1)
    for cause in (
        "annotation without number of a question",
        "question without annotation",
        "annotation of an unknown",
    ):
        assert f"1 x {cause}" in printed


def test_visual_genome_questions(run):
    content = [
        {
            "id": 1,
            "qas": [
                {
                    "a_objects": [],
                    "question": "What color is the clock?",
                    "image_id": 1,
                    "qa_id": 986768,
                    "answer": "Green.",
                },
                {"a_objects": [], "question": "Where?", "image_id": 1, "qa_id": 986769, "answer": "."},
            ],
        }
    ]
    records, printed = run("vg-qa", {"question_answers.json": content, "image_data.json": IMAGE_DATA})
    assert records == [
        {
            "image": "VG_100K_2/1.jpg",
            "image_id": 1,
            "question_id": 986768,
            "question": "What color is the clock?",
            "answer": ["green"],
            "dataset": "vg",
        }
    ]
    assert "1 x no answer" in printed


def test_nlvr2(run):
    entry = {
        "validation": {"4": "False"},
        "writer": "33",
        "sentence": "The right image shows two dogs.",
        "label": "False",
        "synset": "acorn",
        "query": "acorns1",
        "identifier": "train-10171-0-0",
        "left_url": "https://a/b.jpg",
        "right_url": "https://a/c.jpg",
        "directory": 37,
    }
    dev = {**entry, "identifier": "dev-850-0-2", "label": True}
    del dev["directory"]
    lines = [json.dumps(entry), json.dumps(dev), json.dumps(entry | {"identifier": "train-2-0-0"}), "{", "[]"]
    images = [
        *(f"images/train/37/train-10171-0-img{side}.png" for side in range(2)),
        *(f"dev/dev-850-0-img{side}.png" for side in range(2)),
    ]
    records, printed = run("nlvr2", {"train.json": "\n".join(lines) + "\n"}, images=images)
    assert records[0]["images"][0] == "images/images/train/37/train-10171-0-img0.png"
    assert [(record["label"], record["identifier"]) for record in records] == [
        ("False", "train-10171-0-0"),
        ("True", "dev-850-0-2"),
    ]
    assert "2 records taken, 3 left out" in printed and "1 x image file not found" in printed
    assert read_reasoning_records(run.output)[1].identifier == "dev-850-0-2"
    assert read_license(run.output) == "sentences of NLVR2: CC BY 4.0; images of their own owners"


def test_snli_ve(run):
    entry = {
        "annotator_labels": ["entailment"],
        "captionID": "4705552913.jpg#2",
        "gold_label": "neutral",
        "pairID": "4705552913.jpg#2r1n",
        "sentence1": "Two women are embracing.",
        "sentence2": "The sisters are hugging goodbye.",
        "Flickr30K_ID": "4705552913",
    }
    older = {name: value for name, value in entry.items() if name != "Flickr30K_ID"} | {"Flikr30kID": "4705552913.jpg"}
    lines = "".join(json.dumps(one) + "\n" for one in (entry, older, entry | {"gold_label": "-"}))
    records, printed = run("snli-ve", {"snli_ve_dev.jsonl": lines}, images=["4705552913.jpg"])
    assert (
        records
        == [{"image": "images/4705552913.jpg", "sentence": "The sisters are hugging goodbye.", "label": "neutral"}] * 2
    )
    assert "1 x no gold label" in printed
    assert len(read_entailment_records(run.output)) == 2


@pytest.mark.parametrize("protocol", [0, 2, None])
def test_refcoco(run, protocol):
    ref = {
        "sent_ids": [0, 1],
        "file_name": "COCO_train2014_000000581857_16.jpg",
        "ann_id": 1719310,
        "ref_id": 0,
        "image_id": 581857,
        "split": "train",
        "sentences": [
            {"tokens": ["the", "lady"], "raw": "THE LADY", "sent_id": 0, "sent": "the lady"},
            {"tokens": [], "raw": "", "sent_id": 1, "sent": ""},
        ],
        "category_id": 1,
    }
    refs = [ref, ref | {"ref_id": 1, "split": "val"}, ref | {"ref_id": 2, "ann_id": 3}]
    # COCO's instances hold boxes of height 0.
    refs.append(ref | {"ref_id": 3, "ann_id": 2, "sentences": ref["sentences"][:1]})
    instances = {
        "images": [{"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "width": 640, "height": 427}],
        "annotations": [
            {"id": 1719310, "image_id": 581857, "bbox": [103.93, 299.99, 238.15, 117.41], "category_id": 1},
            {"id": 2, "image_id": 581857, "bbox": [1, 2, 30, 0], "category_id": 1},
        ],
    }
    name = "refs(unc).json" if protocol is None else "refs(unc).p"
    files = {name: refs if protocol is None else pickle.dumps(refs, protocol), "instances.json": instances}
    images = ["train2014/COCO_train2014_000000581857.jpg", "COCO_train2014_000000581857.jpg"]
    records, printed = run("refcoco", files, "--split", "train", images=images)
    assert records == [
        {
            "ref_id": 0,
            "image": "images/COCO_train2014_000000581857.jpg",
            "image_id": 581857,
            "text": "the lady",
            "bbox": [103.93, 299.99, 238.15, 117.41],
            "boxes": [[103.93, 299.99, 238.15, 117.41]],
            "split": "train",
            "width": 640,
            "height": 427,
        }
    ]
    for cause in ("no sentence", "field 'ann_id': not among the instances", "a box without area"):
        assert f"1 x {cause}" in printed
    assert read_grounding_records(run.output, for_evaluation=True)[0].box == (103.93, 299.99, 238.15, 117.41)


def test_refcoco_runs_nothing_from_a_pickle(run, tmp_path):
    class Bomb:
        def __reduce__(self):
            return tmp_path.joinpath("exploded").touch, ()

    _, printed = run("refcoco", {"refs(unc).p": pickle.dumps([Bomb()]), "instances.json": {}}, expected_status=1)
    assert "refs(unc).p: not readable as a pickle of plain values" in printed and "Traceback" not in printed
    assert not (tmp_path / "exploded").exists()


def test_albef(run):
    root = "/export/share/datasets/vision"
    content = [
        {
            "image": f"{root}/coco/images/train2014/COCO_train2014_000000000009.jpg",
            "caption": "a tray",
            "kwords": ["food"],
        },
        {
            "images": [f"{root}/NLVR2/dev/dev-1-img{side}.png" for side in "01"],
            "sentence": "two dogs",
            "label": "True",
        },
        {"image": f"{root}/gone.jpg", "caption": "gone"},
        {"caption": "no image"},
    ]
    images = ["coco/images/train2014/COCO_train2014_000000000009.jpg", "dev/dev-1-img0.png", "dev/dev-1-img1.png"]
    records, printed = run("albef", {"coco.json": content}, images=images)
    assert records == [
        {
            "image": "images/coco/images/train2014/COCO_train2014_000000000009.jpg",
            "caption": "a tray",
            "concepts": ["food"],
        },
        {
            "images": ["images/dev/dev-1-img0.png", "images/dev/dev-1-img1.png"],
            "sentence": "two dogs",
            "label": "True",
        },
    ]
    assert "2 records taken, 2 left out" in printed


def test_images_in_another_folder_can_be_read_without_more(run, tmp_path, capsys):
    run("coco-captions", {"captions_val2014.json": COCO}, images=["COCO_val2014_000000391895.jpg"])
    other = tmp_path / "elsewhere" / "out.jsonl"
    argv = ["data", "import", "coco-captions", str(tmp_path / "captions_val2014.json"), "--output", str(other)]
    assert main([*argv, "--images", str(tmp_path / "images"), "--no-progress"]) == 0
    capsys.readouterr()
    assert read_image_text_records(other)[0].load_image().size == (8, 8)


@pytest.mark.parametrize("name", IMPORTERS)
def test_other_files_are_refused_in_one_line(run, name):
    """The file of another owner, broken JSON, nothing at all: never a traceback, and an earlier output stays."""
    run.output.write_text('{"kept": 1}\n')
    for content in ('{"other": [1, 2]}', "[1, null]", "[[", "", '{"images": 3}', "[" * 100_000):
        files = {f"{number}.json": content for number in range(2 if name == "refcoco" else 1)}
        _, printed = run(name, files, expected_status=1)
        assert len(printed.strip().splitlines()) == 1 and ".json" in printed, printed
    assert run.output.read_text() == '{"kept": 1}\n'


def test_identifiers_of_a_wrong_type_are_left_out(run):
    odd = {"image_id": [1], "id": [2], "question_id": {}, "caption": "x", "file_name": "a.jpg", "question": "q?"}
    odd |= {"answers": [{"answer": "a"}], "regions": [{"image_id": [1], "phrase": "x"}], "split": ["test"]}
    odd |= {"qas": [{"image_id": [1], "question": "q?", "answer": "a"}], "sentences": [{"raw": "x"}], "filepath": 3}
    for name, content in (
        ("coco-captions", {"images": [odd], "annotations": [odd]}),
        ("karpathy", {"images": [odd]}),
        ("visual-genome", [odd]),
        ("vg-qa", [odd]),
        ("albef", [odd | {"image": "a.jpg", "caption": ["a", None]}]),
    ):
        _, printed = run(name, {"a.json": content}, expected_status=1)
        assert "0 records taken" in printed or "file name" in printed, printed
    pair = {"q.json": {"questions": [odd], "data_subtype": "val2014"}, "a.json": {"annotations": [odd]}}
    assert "0 records taken, 2 left out" in run("vqa-v2", pair, expected_status=1)[1]


def test_wrong_use_is_refused(run, tmp_path):
    _, printed = run("coco-captions", {"captions.json": COCO}, "--split", "val", expected_status=1)
    assert "the files name no splits" in printed
    _, printed = run("vg-qa", {"a.json": [], "b.json": [], "c.json": []}, expected_status=1)
    assert "question_answers.json and perhaps image_data.json; got 3 files" in printed
    _, printed = run("coco-captions", {"captions.json": COCO}, "--images", str(tmp_path / "none"), expected_status=1)
    assert "is no folder" in printed
    with pytest.raises(SystemExit) as stopped:
        main(["data", "import", "unknown", "a.json", "--output", "b.jsonl"])
    assert stopped.value.code == 2
