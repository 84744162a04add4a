"""`vicha-hf report`: one page about a run of any task, or about a model's folder alone."""

import json
import logging

import pytest
from head_checks import tiny_head
from tiny_model_folder import tiny_processor, write_model_folder
from tiny_task_files import NUM_IMAGES, write_task_files

from vicha_hf.cli import main as vicha_hf_command
from vicha_hf.evaluation.words_alone import words_alone_recall
from vicha_hf.families import find_model_folder
from vicha_hf.reporting.task_sections import frequent_mistakes_html


SECTIONS = {
    "retrieval": ["What it retrieves", "R@1", "chance"],
    "vqa": ["Confusion", "Examples", "Metrics", "model: "],
    "entailment": ["Confusion", "Examples", "contradiction", "Chance"],
    "reasoning": ["Confusion", "Examples"],
    "grounding": ["Examples", "green box", "accuracy_itm"],
}


@pytest.fixture(scope="module")
def task_files(tmp_path_factory):
    return write_task_files(tmp_path_factory.mktemp("tasks"))


@pytest.mark.parametrize("task", SECTIONS)
def test_the_page_of_a_model(task, task_files, tmp_path, capsys):
    folder = tmp_path / "model"
    if task == "retrieval":
        write_model_folder(folder)
    else:
        tiny_head(task).save_pretrained(folder)
        tiny_processor(folder).save_pretrained(folder)
        (folder / "answer_list.json").write_text(json.dumps(["red", "white tree", "two dogs"]))
    output = tmp_path / "page.html"
    command = ["report", str(folder), "--data", f"{task_files / task}.json", "--output", str(output)]
    candidates = ["--k", "5"] if task in ("retrieval", "vqa") else []
    assert vicha_hf_command([*command, *candidates]) == 0
    assert str(output) in capsys.readouterr().out
    page = output.read_text()
    for words in SECTIONS[task]:
        assert words in page
    assert page.count("<img") >= min(NUM_IMAGES, 6)
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_page_of_a_run_has_its_curves_and_its_own_data(task_files, tmp_path):
    write_model_folder(tmp_path / "run/best_model")
    run = tmp_path / "run"
    log = [{"step": step, "loss": 3.0 / step} for step in (1, 2)]
    log += [
        {"step": step, "evaluation": {"r_mean": 10.0 * step, "r1_i2t": step, "chance_r1_i2t": 1}} for step in (1, 2)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    (run / "metrics.json").write_text(json.dumps({"primary_metric": "r_mean", "step": 2, "train_seconds": 61.0}))
    # Outside the root, as the run was allowed to read them.
    (tmp_path / "elsewhere").mkdir()
    validation = json.loads((task_files / "retrieval.json").read_text())
    for record in validation:
        record["image"] = str((task_files / record["image"]).resolve())
    broken = {"image": "nowhere.png", "caption": "a <dog>"}
    (run / "validation.json").write_text(json.dumps([*validation, broken]))
    data = {"validation": str(run / "validation.json"), "image_root": str(tmp_path / "elsewhere")}
    data |= {"on_bad_record": "skip", "allow_outside_root": True}
    (run / "config.yaml").write_text(json.dumps({"seed": 7, "num_epochs": 11, "max_steps": 2, "data": data}))
    rejected = {"record": "train.json, record 3", "cause": "'caption' is empty", "message": "write <one>"}
    # The same record again, from another epoch.
    (run / "rejected_records.jsonl").write_text(2 * (json.dumps(rejected) + "\n"))
    assert vicha_hf_command(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    for words in (
        "Evaluations",
        "10.0 &rarr; 20.0",
        "Training losses",
        "best_model",
        "Concepts",
        "By the words alone",
        "Records left out of the run",
        "&#x27;caption&#x27; is empty</td><td>1</td><td class=row>train.json, record 3: write &lt;one&gt;",
        "Records left out of this evaluation",
        "nowhere.png",
        "max_steps",
    ):
        assert words in page
    # None of those that lie outside.
    assert "outside the image root" not in page
    # The setting that did not decide.
    assert "num_epochs" not in page


def test_a_run_means_its_last_model_and_its_best_one_can_be_named(task_files, tmp_path, capsys):
    run = tmp_path / "run"
    for name in ("model", "best_model"):
        write_model_folder(run / name)
    (run / "config.yaml").write_text(
        json.dumps({"seed": 7, "data": {"validation": str(task_files / "retrieval.json")}})
    )
    for named, used in ((run, "model"), (run / "best_model", "best_model"), (run / "model", "model")):
        assert vicha_hf_command(["report", str(named)]) == 0
        page = (run / "report.html").read_text()
        assert f"with the model in {run / used}, evaluated on" in page
        # The settings of the run, whichever of its models is named.
        assert "<h1>ViCHA: run</h1>" in page and "<dt>seed</dt><dd>7</dd>" in page


def test_the_most_frequent_mistakes_stand_first():
    html = frequent_mistakes_html([("a <cat>", "dog"), ("yes", "no"), ("a <cat>", "dog")])
    assert html.index("a &lt;cat&gt;") < html.index("yes") and "of 3 mistakes" in html
    assert "<td class=row>dog</td><td>2</td>" in html
    assert frequent_mistakes_html([]) == ""


def test_a_run_says_which_of_its_models_is_used(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vicha_hf.families"), "handlers", [caplog.handler])
    best = tmp_path / "best_model"
    best.mkdir()
    (best / "config.json").write_text("{}")
    # A run that was cut off before its end.
    assert find_model_folder(str(tmp_path)) == str(best)
    assert set(caplog.messages) == {f"{tmp_path} is a run: using its {best}."}
    last = tmp_path / "model"
    last.mkdir()
    (last / "config.json").write_text("{}")
    assert find_model_folder(str(tmp_path)) == str(last)
    assert caplog.messages[-1] == (
        f"{tmp_path} is a run: using its {last}. The weights of its best evaluation are in {best}."
    )


def test_mistakes_are_one_line(task_files, tmp_path, capsys):
    assert vicha_hf_command(["report", str(tmp_path)]) == 1
    assert "holds no model" in capsys.readouterr().err
    write_model_folder(tmp_path / "model")
    assert vicha_hf_command(["report", str(tmp_path / "model"), "--data", str(tmp_path / "nowhere.json")]) == 1
    assert "nowhere.json" in capsys.readouterr().err
    assert not (tmp_path / "model/report.html").exists()


def test_words_alone_share_ties():
    recall = words_alone_recall([["dog", "grass"], ["dog"], []], ["a dog", "A DOG on grass!", "nothing"], [1, 0, 2])
    # The first caption's dog is in two images; the third shares no word with any of the three.
    assert recall["words_r1_t2i"] == pytest.approx(100 * (1 / 2 + 1 + 1 / 3) / 3)
    # The first image shares most with its own caption; the second one with both captions of dogs; the third with none.
    assert recall["words_r1_i2t"] == pytest.approx(100 * (1 + 1 / 2 + 1 / 3) / 3)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.json", "{", "metrics.json is no JSON"),
        ("metrics.json", "[1]", "metrics.json holds no metrics by name"),
        ("log.jsonl", '{"step": 1}\n{"step\n{"step": 2}\n', "log.jsonl, line 2, is no JSON"),
        ("log.jsonl", "null\n", "log.jsonl, line 1, is no record of a run"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(file, content, message, tmp_path, capsys):
    write_model_folder(tmp_path / "model")
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / file).write_text(content)
    assert vicha_hf_command(["report", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert message in line
