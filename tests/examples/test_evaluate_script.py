"""The evaluation script on every task, on one process and on two."""

import dataclasses
import json
import re

import pytest
from head_checks import tiny_head
from tiny_model_folder import tiny_processor, write_model_folder
from tiny_task_files import NUM_IMAGES

from vicha_hf.cli import main as command_line
from vicha_hf.data.raw_records import AnnotationError
from vicha_hf.evaluation.task_evaluation import EvaluationArguments


TASKS = ("retrieval", "vqa", "entailment", "reasoning", "grounding")
ANSWERS = ["red", "white tree", "two dogs"]

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder per task, as fine-tuning leaves it, with random weights."""
    root = tmp_path_factory.mktemp("models")
    write_model_folder(root / "retrieval")
    for task in TASKS[1:]:
        (root / task).mkdir()
        tiny_head(task).save_pretrained(root / task)
        tiny_processor(root / task).save_pretrained(root / task)
    (root / "vqa/answer_list.json").write_text(json.dumps(ANSWERS))
    return root


@pytest.fixture
def options(models, task_files, tmp_path):
    def make(task, *overrides):
        return [
            f"--task={task}",
            f"--model={models / task}",
            f"--data={task_files / task}.json",
            f"--output_dir={tmp_path / 'out'}",
            "--batch_size=4",
            *(["--k=5"] if task in ("retrieval", "vqa") else []),
            *overrides,
        ]

    return make


def written(folder):
    return [json.loads((folder / name).read_text()) for name in ("metrics.json", "predictions.json")]


def test_retrieval(options, script, tmp_path):
    script("evaluate")(options("retrieval", "--top=2"))
    metrics, predictions = written(tmp_path / "out")
    assert metrics.keys() >= {"r1_i2t", "r1_t2i", "r_mean", "r_mean_itc_only", "chance_r1"}
    assert (metrics["num_images"], metrics["num_captions"]) == (NUM_IMAGES, 2 * NUM_IMAGES)
    assert len(predictions["images"]) == NUM_IMAGES and predictions["captions"][1] == "red dog sitting"
    best = predictions["text_to_image"]
    assert [len(row) for row in best] == [2] * 2 * NUM_IMAGES
    found = sum(row[0]["index"] == caption // 2 for caption, row in enumerate(best))
    assert metrics["r1_t2i"] == pytest.approx(100 * found / len(best))


def test_question_answering_in_the_servers_format(options, script, tmp_path):
    script("evaluate")(options("vqa"))
    metrics, predictions = written(tmp_path / "out")
    right = [
        entry["answer"] == ("red" if entry["question_id"] % 3 == 100 % 3 else "white tree") for entry in predictions
    ]
    assert metrics["accuracy"] == pytest.approx(100 * sum(right) / NUM_IMAGES, abs=0.01)
    assert metrics["accuracy_question_type_is"] == pytest.approx(100 * sum(right[::2]) / 6, abs=0.01)
    assert {entry["answer"] for entry in predictions} <= set(ANSWERS)
    assert [entry["question_id"] for entry in predictions] == list(range(100, 100 + NUM_IMAGES))
    # With all answers among the candidates nothing is left for the search of the whole list to find.
    script("evaluate")(options("vqa", "--exact=true"))
    assert written(tmp_path / "out")[1] == predictions


def test_questions_without_answers_are_answered_freely_and_not_counted(options, task_files, script, tmp_path):
    records = json.loads((task_files / "vqa.json").read_text())
    for record in records:
        del record["answer"]
    path = task_files / "unanswered.json"
    path.write_text(json.dumps(records))
    script("evaluate")(options("vqa", f"--data={path}", "--generate=true"))
    metrics, predictions = written(tmp_path / "out")
    assert "accuracy" not in metrics and len(predictions) == NUM_IMAGES


@pytest.mark.parametrize("task", TASKS)
def test_the_task_is_that_of_the_models_head(task, models, task_files, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(models / task)
    command = [
        "evaluate",
        str(run),
        str(task_files / f"{task}.json"),
        *(["--k", "5"] if task in ("retrieval", "vqa") else []),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert command_line(command) == 0
    metrics, _ = written(tmp_path / "out")
    assert metrics["task"] == task and metrics["model"] == str(run / "model")


@pytest.mark.parametrize(
    ("task", "option", "readers"),
    [
        ("retrieval", "every_layer=true", "grounding"),
        ("retrieval", "methods=[itc]", "grounding"),
        ("retrieval", "generate=true", "vqa"),
        ("vqa", "top=3", "retrieval"),
        ("grounding", "vqa_rules=2017", "vqa"),
        ("entailment", "k=5", "retrieval and vqa"),
    ],
)
def test_an_option_of_another_task_is_named(task, option, readers, models, task_files, tmp_path, capsys):
    """Also where the task is found in the model's folder."""
    command = ["evaluate", str(models / task), str(task_files / f"{task}.json"), f"--{option}"]
    for more in ([], ["--task", task]):
        try:
            status = command_line([*command, *more])
        except SystemExit as usage:
            status = usage.code
        assert status == (2 if more else 1)
        error = capsys.readouterr().err.splitlines()[-1]
        assert f" is not possible: it belongs to {readers}, and the task is {task}; leave it out." in error
        assert error.startswith(f"vicha-hf evaluate: {option.split('=')[0]}=")


@pytest.mark.parametrize("task", ["entailment", "reasoning"])
def test_classification(task, options, script, tmp_path):
    script("evaluate")(options(task))
    metrics, predictions = written(tmp_path / "out")
    right = sum(entry["label"] == entry["reference"] for entry in predictions)
    assert metrics["accuracy"] == pytest.approx(100 * right / NUM_IMAGES)
    assert all(1 / 3 <= entry["probability"] <= 1 for entry in predictions)
    assert len({entry["record"] for entry in predictions}) == NUM_IMAGES


@pytest.mark.parametrize("task", ["entailment", "reasoning"])
def test_records_without_labels(task, options, task_files, script, tmp_path):
    records = json.loads((task_files / f"{task}.json").read_text())
    path = task_files / f"unlabelled_{task}.json"
    del records[5]["label"]
    path.write_text(json.dumps(records))
    with pytest.raises(AnnotationError, match=r"unlabelled_.*record 5: field 'label': missing, as in 1 of 12"):
        script("evaluate")(options(task, f"--data={path}"))
    path.write_text(json.dumps([{name: record[name] for name in record if name != "label"} for record in records]))
    script("evaluate")(options(task, f"--data={path}"))
    metrics, predictions = written(tmp_path / "out")
    assert "accuracy" not in metrics and [entry["reference"] for entry in predictions] == [None] * NUM_IMAGES


def test_grounding_by_both_methods_beside_chance(options, script, tmp_path):
    script("evaluate")(options("grounding"))
    metrics, predictions = written(tmp_path / "out")
    for method in ("itm", "itc"):
        hits = sum(entry[method]["iou"] >= 0.5 for entry in predictions)
        assert metrics[f"accuracy_{method}"] == pytest.approx(100 * hits / NUM_IMAGES)
        assert metrics.keys() >= {f"pointing_{method}", f"accuracy_{method}_val", f"accuracy_{method}_testA"}
    # One of three proposals is right; the box holds 400 of 40 x 48 pixels.
    assert metrics["accuracy_random_proposal"] == pytest.approx(100 / 3)
    assert metrics["pointing_random_pixel"] == pytest.approx(100 * 400 / (40 * 48))
    script("evaluate")(options("grounding", "--splits=[val]", "--methods=[itc]"))
    metrics, predictions = written(tmp_path / "out")
    assert "accuracy_itm" not in metrics and metrics["num_expressions"] == len(predictions) == NUM_IMAGES // 2


def test_every_layer_is_tried_and_the_best_of_each_method_counts(options, script, tmp_path, capsys):
    script("evaluate")(options("grounding", "--every_layer=true"))
    metrics, predictions = written(tmp_path / "out")
    for method, layers in (("itm", (2, 3)), ("itc", (0, 1, 2))):
        reached = {
            layer: (metrics[f"accuracy_{method}_layer_{layer}"], metrics[f"pointing_{method}_layer_{layer}"])
            for layer in layers
        }
        assert f"accuracy_{method}_layer_{max(layers) + 1}" not in metrics
        best = metrics[f"layer_{method}"]
        assert reached[best] == max(reached.values()) == (metrics[f"accuracy_{method}"], metrics[f"pointing_{method}"])
        assert metrics[f"accuracy_{method}_val"] == metrics[f"accuracy_{method}_layer_{best}_val"]
        hits = sum(entry[method]["iou"] >= 0.5 for entry in predictions)
        assert metrics[f"accuracy_{method}"] == pytest.approx(100 * hits / NUM_IMAGES)
        for layer in layers:
            script("evaluate")(options("grounding", f"--methods=[{method}]", f"--layer_{method}={layer}"))
            alone, _ = written(tmp_path / "out")
            assert (alone[f"accuracy_{method}"], alone[f"pointing_{method}"]) == reached[layer]
    with pytest.raises(SystemExit):
        script("evaluate")(options("grounding", "--every_layer=true", "--layer_itc=1"))
    assert "layer_itc=1 is not possible: every_layer=true tries all of them" in capsys.readouterr().err


def test_the_text_only_figure_stands_beside_and_sees_no_image(options, models, task_files, script, tmp_path):
    script("evaluate")(options("entailment", f"--text_only_model={models / 'entailment'}"))
    beside, seeing = written(tmp_path / "out")
    script("evaluate")(options("entailment", "--text_only=true"))
    metrics, blind = written(tmp_path / "out")
    assert beside["text_only_accuracy"] == metrics["accuracy"]
    assert blind != seeing
    records = json.loads((task_files / "entailment.json").read_text())
    path = task_files / "entailment_of_one_image.json"
    path.write_text(json.dumps([record | {"image": "0.png", "concepts": ["snow"]} for record in records]))
    script("evaluate")(options("entailment", "--text_only=true", f"--data={path}"))
    _, other = written(tmp_path / "out")
    assert [entry["probability"] for entry in other] == [entry["probability"] for entry in blind]


# An odd number of samples: the shares differ, and none may be counted twice to even them out.
@pytest.mark.parametrize("task", ["vqa", "retrieval"])
def test_two_processes_equal_one(task, options, task_files, script, launch_on_two_processes, tmp_path):
    path = task_files / f"odd_{task}.json"
    path.write_text(json.dumps(json.loads((task_files / f"{task}.json").read_text())[:11]))
    arguments = options(task, f"--data={path}")
    launch_on_two_processes("evaluate", arguments)
    together, predictions = written(tmp_path / "out")
    assert together.pop("num_processes") == 2
    script("evaluate")(arguments)
    alone, expected = written(tmp_path / "out")
    assert alone.pop("num_processes") == 1
    assert together == alone
    if task == "retrieval":
        for way in ("image_to_text", "text_to_image"):
            for row, right in zip(predictions.pop(way), expected.pop(way), strict=True):
                assert [entry["score"] for entry in row] == pytest.approx(
                    [entry["score"] for entry in right], abs=1e-4
                )
    assert predictions == expected


def test_both_doors_have_one_spelling_of_every_option(script, capsys):
    listed = {}
    for door, run in (("script", script("evaluate")), ("command", lambda argv: command_line(["evaluate", *argv]))):
        with pytest.raises(SystemExit) as stop:
            run(["--help"])
        assert stop.value.code == 0
        listed[door] = set(re.findall(r"^  (--[a-z_.]+)", capsys.readouterr().out, flags=re.MULTILINE))
    assert listed["command"] == listed["script"]
    assert listed["script"] >= {f"--{field.name}" for field in dataclasses.fields(EvaluationArguments)}


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("grounding", ["--batch-size", "4", "--methods", "itm", "itc", "--splits", "val", "testA"]),
        ("vqa", ["--exact", "--batch_size=4"]),
        ("vqa", ["--generate", "true", "--no_use_concepts"]),
        ("retrieval", ["--top", "2", "--k=5", "--use_concepts", "false"]),
    ],
)
def test_the_command_line_is_the_same_evaluation(task, options, models, task_files, script, tmp_path):
    script("evaluate")(
        [
            f"--task={task}",
            f"--model={models / task}",
            f"--data={task_files / task}.json",
            f"--output_dir={tmp_path / 'script'}",
            *options,
        ]
    )
    positionals = [str(models / task), f"{task_files / task}.json"]
    assert (
        command_line(["evaluate", *positionals, "--task", task, *options, "--output-dir", str(tmp_path / "cli")]) == 0
    )
    assert written(tmp_path / "cli") == written(tmp_path / "script")


def test_a_runs_folder_stands_for_its_model(models, task_files, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    data = f"{task_files / 'entailment'}.json"
    command = ["evaluate", str(run), data, "--task=entailment", f"--json={tmp_path / 'metrics.json'}"]
    assert command_line(command) == 1
    assert "holds no model" in capsys.readouterr().err
    (run / "model").symlink_to(models / "entailment")
    assert command_line(command) == 0
    through_the_run = json.loads((tmp_path / "metrics.json").read_text())
    assert command_line([*command[:1], str(models / "entailment"), *command[2:]]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text()) == through_the_run
    assert command_line([*command[:1], str(tmp_path / "no_such_folder"), *command[2:]]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("vicha-hf evaluate: ") and "no_such_folder is not there" in error


@pytest.mark.parametrize(
    ("task", "overrides", "error", "message"),
    [
        ("vqa", ["--answer_list=nowhere.json"], AnnotationError, r"nowhere.json"),
        ("entailment", ["--model={retrieval}"], ValueError, "not fine-tuned for entailment"),
        ("entailment", ["--data={data}/vqa.json"], AnnotationError, "'sentence'"),
        ("grounding", ["--text_only=true"], SystemExit, None),
    ],
)
def test_mistakes_are_errors(task, overrides, error, message, models, options, task_files, script, capsys):
    overrides = [text.format(retrieval=models / "retrieval", data=task_files) for text in overrides]
    with pytest.raises(error, match=message):
        script("evaluate")(options(task, *overrides))
    if error is SystemExit:
        assert "compare grounding with the chance" in capsys.readouterr().err
