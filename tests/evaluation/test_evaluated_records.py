"""Which records an evaluation counts: splits, identifiers, answer lists and weights that belong together, or an error."""

import json
import shutil

import pytest
from head_checks import tiny_head
from safetensors.torch import load_file, save_file
from tiny_model_folder import tiny_processor, write_model_folder
from tiny_task_files import NUM_IMAGES, write_task_files

from vicha_hf.cli import main
from vicha_hf.data.raw_records import AnnotationError
from vicha_hf.evaluation.classification import statement_consistency
from vicha_hf.families import load_finetuned


COUNTS = {
    "retrieval": "num_images",
    "vqa": "num_questions",
    "entailment": "num_samples",
    "reasoning": "num_samples",
    "grounding": "num_expressions",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_task_files(tmp_path_factory.mktemp("records"))
    write_model_folder(root / "models/retrieval")
    for task in list(COUNTS)[1:]:
        folder = root / "models" / task
        folder.mkdir()
        tiny_head(task).save_pretrained(folder)
        tiny_processor(folder).save_pretrained(folder)
    (root / "models/vqa/answer_list.json").write_text(json.dumps(["red", "white tree"]))
    return root


@pytest.fixture
def evaluate(root, tmp_path, capsys):
    def evaluate(task, records, *options):
        (root / "changed.json").write_text(json.dumps(records))
        command = [
            "evaluate",
            str(root / "models" / task),
            str(root / "changed.json"),
            "--task",
            task,
            "--device",
            "cpu",
        ]
        status = main([*command, "--output_dir", str(tmp_path / "out"), *options])
        error = capsys.readouterr().err
        if status:
            return error.strip().splitlines()[-1]
        return [json.loads((tmp_path / "out" / name).read_text()) for name in ("metrics.json", "predictions.json")]

    return evaluate


def records_of(root, task):
    return json.loads((root / f"{task}.json").read_text())


@pytest.mark.parametrize("task", COUNTS)
def test_splits_choose_records_in_every_task(root, evaluate, task):
    records = [
        record | {"split": ("val", "test", "train")[index % 3]} for index, record in enumerate(records_of(root, task))
    ]
    metrics, _ = evaluate(task, records, "--splits", "val", "test")
    assert metrics[COUNTS[task]] == NUM_IMAGES * 2 // 3
    metrics, _ = evaluate(task, records)
    assert metrics[COUNTS[task]] == NUM_IMAGES
    assert "'nowhere'" in evaluate(task, records, "--splits", "val", "nowhere")
    without = [{name: value for name, value in record.items() if name != "split"} for record in records]
    assert "split" in evaluate(task, without, "--splits", "val")


@pytest.mark.parametrize("task", ["retrieval", "grounding"])
def test_one_id_of_two_images_is_an_error(root, evaluate, task):
    records = [record | {"image_id": index} for index, record in enumerate(records_of(root, task))]
    assert isinstance(evaluate(task, records), list)
    records[3]["image_id"] = 1
    error = evaluate(task, records)
    assert "image_id" in error and "1.png" in error and "record" in error


def test_two_questions_or_statements_of_one_id_are_an_error(root, evaluate):
    questions = records_of(root, "vqa")
    questions[2]["question_id"] = questions[0]["question_id"]
    assert "question_id" in evaluate("vqa", questions)
    statements = [
        record | {"identifier": f"dev-1-{index}-0"} for index, record in enumerate(records_of(root, "reasoning"))
    ]
    statements[4]["identifier"] = "dev-1-0-0"
    error = evaluate("reasoning", statements)
    assert "identifier" in error and "dev-1-0-0" in error


def test_statements_keep_their_identifier_and_have_a_consistency(root, evaluate):
    # Three sentences, each with four pairs of images.
    names = [f"dev-{index // 4}-{index % 4}-0" for index in range(NUM_IMAGES)]
    records = [
        record | {"identifier": name} for record, name in zip(records_of(root, "reasoning"), names, strict=True)
    ]
    metrics, predictions = evaluate("reasoning", records)
    assert [entry["identifier"] for entry in predictions] == names
    right = [entry["label"] == entry["reference"] for entry in predictions]
    sentences = [all(right[start : start + 4]) for start in range(0, NUM_IMAGES, 4)]
    assert metrics["num_sentences"] == 3
    assert metrics["consistency"] == pytest.approx(100 * sum(sentences) / 3)
    metrics, predictions = evaluate("reasoning", records_of(root, "reasoning"))
    assert "consistency" not in metrics and "identifier" not in predictions[0]


def test_consistency_by_hand():
    names = ["dev-0-0-0", "dev-0-1-0", "dev-0-0-1", "dev-0-1-1", "dev-1-0-0", "other"]
    right = [True, True, True, False, True, False]
    assert statement_consistency(names, right) == {"consistency": 50.0, "num_sentences": 4}


def test_an_answer_list_of_another_corpus_is_an_error(root, evaluate, tmp_path):
    questions = records_of(root, "vqa")
    (tmp_path / "other.json").write_text(json.dumps(["yes", "no"]))
    error = evaluate("vqa", questions, "--answer_list", str(tmp_path / "other.json"))
    assert "other.json: none of its 2 answers, such as 'yes'" in error
    (tmp_path / "partly.json").write_text(json.dumps(["Red", "no"]))
    assert isinstance(evaluate("vqa", questions, "--answer_list", str(tmp_path / "partly.json")), list)
    # Questions of a test set, whose answers are not known, say nothing about the list.
    unanswered = [{name: value for name, value in record.items() if name != "answer"} for record in questions]
    assert isinstance(evaluate("vqa", unanswered, "--answer_list", str(tmp_path / "other.json")), list)


@pytest.mark.parametrize(("part", "field"), [("vision_config", "vision_model"), ("text_config", "text_model")])
def test_weights_that_the_configuration_leaves_over_are_an_error(root, tmp_path, part, field, evaluate):
    shutil.copytree(root / "models/retrieval", tmp_path / "model")
    path = tmp_path / "model/config.json"
    config = json.loads(path.read_text())
    config[part]["num_hidden_layers"] -= 1
    config["hierarchical_itc_levels"] = 1
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"left over.*{field}"):
        load_finetuned("retrieval", str(tmp_path / "model"))


def test_weights_without_a_layer_are_an_error(root, tmp_path):
    shutil.copytree(root / "models/vqa", tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if ".layers.1." not in name}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing"):
        load_finetuned("vqa", str(tmp_path / "model"))


def test_a_list_that_answers_few_questions_is_said_to(root, caplog):
    from vicha_hf.data.annotations_vqa import read_question_records
    from vicha_hf.data.answer_list import check_answer_list

    records = read_question_records(root / "vqa.json")
    assert check_answer_list(["red", "white tree"], records, "all") == 1.0
    with caplog.at_level("WARNING"):
        share = check_answer_list([" Red", "blue"], records, "few")
    assert share == pytest.approx(1 / 3) and "33.3 %" in caplog.text
    with pytest.raises(AnnotationError, match="none of its 1 answers"):
        check_answer_list(["blue"], records, "none")
