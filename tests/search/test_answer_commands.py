"""The commands that ask a model about one image."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_model_folder import tiny_processor, write_gallery, write_model_folder
from tiny_models import _build, tiny_config

from vicha_hf.cli import main
from vicha_hf.families import HEADS
from vicha_hf.search.grounded_image import BOX_COLOUR, draw_grounding


ANSWERS = ["red", "white tree", "grass"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("asking")
    write_gallery(root)
    write_model_folder(root / "retrieval")
    (root / "vqa").mkdir()
    _build(HEADS["vicha"]["vqa"], "sdpa", 0, True, tiny_config()).save_pretrained(root / "vqa")
    tiny_processor(root / "vqa").save_pretrained(root / "vqa")
    (root / "vqa/answer_list.json").write_text(json.dumps(ANSWERS))
    return root


def test_ask_prints_the_answers_with_their_probabilities(root, capsys):
    command = ["ask", str(root / "vqa"), str(root / "0.png"), "is the dog red?"]
    assert main([*command, "--json", str(root / "answers.json")]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    written = json.loads((root / "answers.json").read_text())["answers"]
    assert [answer for _, answer in lines] == [entry["answer"] for entry in written]
    assert {answer for _, answer in lines} == set(ANSWERS)
    assert sum(entry["score"] for entry in written) == pytest.approx(1.0)
    assert main([*command, "--top", "1", "--concepts", "dog", "snow", "--json", "-"]) == 0
    assert len(json.loads(capsys.readouterr().out)["answers"]) == 1
    (root / "own.json").write_text(json.dumps(["a", "an"]))
    assert main([*command, "--answer-list", str(root / "own.json")]) == 0
    assert {line.split()[-1] for line in capsys.readouterr().out.splitlines()} == {"a", "an"}
    assert main([*command, "--generate"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("method", ["itm", "itc"])
def test_ground_draws_the_map_and_the_box(root, capsys, method):
    output = root / f"out/{method}.png"
    command = ["ground", str(root / "retrieval"), str(root / "0.png"), "a dog", "--output", str(output)]
    assert main([*command, "--method", method, "--json", str(root / "box.json")]) == 0
    box = json.loads((root / "box.json").read_text())["box"]
    assert f"x {box['xmin']} to {box['xmax']}" in capsys.readouterr().out
    with Image.open(output) as drawn, Image.open(root / "0.png") as image:
        assert drawn.size == image.size
        assert drawn.getpixel((box["xmin"], box["ymin"])) == BOX_COLOUR
        assert not np.array_equal(np.asarray(drawn), np.asarray(image))


def test_a_map_without_heat_leaves_the_image_as_it_is():
    image = Image.new("RGB", (20, 10), (10, 20, 30))
    drawn = draw_grounding(image, {"heatmap": np.zeros((2, 2)), "box": None})
    assert np.array_equal(np.asarray(drawn), np.asarray(image))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["ask", "{root}/retrieval", "{root}/0.png", "is it?"], 1, "not fine-tuned for vqa"),
        (
            ["evaluate", "{root}/vqa", "{root}/annotations.json", "--task", "retrieval"],
            1,
            "a model for vqa, which `vicha-hf evaluate --task vqa` evaluates.",
        ),
        (["ask", "{root}/vqa", "{root}/nowhere.png", "is it?"], 1, "nowhere.png"),
        (["ask", "{root}/vqa", "{root}/annotations.json", "is it?"], 1, "annotations.json"),
        (["ask", "{root}/vqa", "{root}/0.png", "is it?", "--top", "0"], 2, "at least 1"),
        (["ask", "{root}/nowhere", "{root}/0.png", "is it?"], 1, "nowhere"),
        (
            ["ground", "{root}/vqa", "{root}/0.png", "a dog", "--output", "{root}/o.png"],
            1,
            "not fine-tuned for grounding",
        ),
        (["ground", "{root}/retrieval", "{root}/0.png", "a dog", "--output", "{root}/o.txt"], 1, "ending of an image"),
        (
            ["ground", "{root}/retrieval", "{root}/0.png", "a dog", "--output", "{root}/o.png", "--layer", "9"],
            1,
            "layer=9",
        ),
        (["ground", "{root}/retrieval", "{root}/0.png", "a dog", "--output", "/proc/o.png"], 1, "/proc/o.png"),
    ],
)
def test_mistakes_are_one_line(root, capsys, arguments, status, message):
    try:
        found = main([word.format(root=root) for word in arguments])
    except SystemExit as stop:
        found = stop.code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert found == status and message in error and error.startswith("vicha-hf ")
