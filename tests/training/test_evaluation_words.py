"""The command that a run names evaluates as the run did."""

from types import SimpleNamespace

from vicha_hf.evaluation.task_evaluation import EvaluationArguments
from vicha_hf.training.evaluation_words import evaluation_words_of_run
from vicha_hf.training.pretraining import DataArguments


COMMAND = ["vicha-hf", "evaluate", "out/model", "v.json", "--task", "retrieval"]


def test_usual_settings_need_no_words():
    assert evaluation_words_of_run("out/model", ["v.json"], "retrieval", None) == COMMAND
    data = DataArguments(train="t.json", rerank_k=EvaluationArguments.k)
    assert evaluation_words_of_run("out/model", ["v.json"], "retrieval", data) == COMMAND


def test_settings_that_change_the_figures_are_named():
    data = SimpleNamespace(
        image_root="/pictures", allow_outside_root=True, on_bad_record="skip", use_concepts=False, rerank_k=32
    )
    data.validation_splits = ["val", "testA"]
    words = evaluation_words_of_run("out/model", ["v.json"], "retrieval", data)
    named = ["--image_root", "/pictures", "--allow_outside_root", "true", "--on_bad_record", "skip"]
    named += ["--use_concepts", "false", "--splits", "val", "testA", "--k", "32"]
    assert words == [*COMMAND, *named]
    # A reader on the Hub has not this machine's folders.
    assert "/pictures" not in evaluation_words_of_run("org/name", ["v.json"], "retrieval", data, own_folders=False)
