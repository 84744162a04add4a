"""Results of evaluations in a model's card: beside what a person wrote, once each."""

import pytest
from huggingface_hub import ModelCard
from tiny_model_folder import write_gallery, write_model_folder

from vicha_hf.cli import main
from vicha_hf.evaluation.card_results import CardError, ResultCard, evaluation_results
from vicha_hf.evaluation.metric_table import metric_table


WRITTEN = """---
license: mit
language: en
model-index:
- name: mine
  results:
  - task:
      type: image-classification
    dataset:
      name: Flowers
      type: flowers
    metrics:
    - type: accuracy
      value: 71.5
---

# Mine

Words of my own -- with <b>marks</b> and a | pipe.

## Results

Not evaluated.

## Limits

None that I know.
"""


def add(folder, metrics, dataset="test.json", settings=None):
    card = ResultCard(str(folder))
    card.add("retrieval", dataset, metrics, settings, f"vicha-hf evaluate {folder} {dataset}")
    assert card.write() == str(folder / "README.md")
    return (folder / "README.md").read_text(encoding="utf-8")


def values(folder) -> dict:
    return {
        (
            result.dataset_name,
            str(result.dataset_config),
            result.metric_name or result.metric_type,
        ): result.metric_value
        for result in ModelCard.load(folder / "README.md").data.eval_results
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text(WRITTEN, encoding="utf-8")
    return tmp_path


def test_results_stand_beside_what_was_there_and_once(folder):
    first = add(folder, {"r1_i2t": 12.345, "chance_r1_i2t": 1.0, "num_images": 5})
    assert values(folder) == {("Flowers", "None", "accuracy"): 71.5, ("test.json", "None", "r1_i2t"): 12.35}
    assert (
        "Not evaluated." not in first
        and "| R@1, image to captions | 12.35 | 1.00 |" in first
        and "Evaluated: 5 images." in first
    )
    for words in ("license: mit", "Words of my own -- with <b>marks</b> and a | pipe.", "None that I know."):
        assert words in first
    assert first.index("## Results") < first.index("| 12.35 |") < first.index("## Limits")
    assert add(folder, {"r1_i2t": 12.345, "chance_r1_i2t": 1.0, "num_images": 5}) == first

    again = add(folder, {"r1_i2t": 20.0})
    assert "12.35" not in again and values(folder)["test.json", "None", "r1_i2t"] == 20.0
    # Other data and other settings are other results.
    add(folder, {"r1_i2t": 30.0}, "other.json")
    last = add(folder, {"r1_i2t": 40.0}, settings={"concepts": "auto"})
    assert sorted(value for value in values(folder).values()) == [20.0, 30.0, 40.0, 71.5]
    assert last.count("### Image-text retrieval on") == 3 and last.count("\n## ") == 2
    assert ModelCard.load(folder / "README.md").data.metrics == ["recall"]


def test_a_card_without_results_or_without_text_gets_a_section(folder):
    (folder / "README.md").write_text("Only words.\n", encoding="utf-8")
    text = add(folder, {"r1_i2t": 5.0})
    assert "Only words.\n\n## Results\n" in text and values(folder) == {("test.json", "None", "r1_i2t"): 5.0}
    (folder / "README.md").unlink()
    assert f"# {folder.name}\n\n## Results\n" in add(folder, {"r1_i2t": 6.0})


def test_a_card_shows_chance_and_other_stages_beside_a_metric():
    retrieval = {
        "r1_i2t": 40.0,
        "r_mean_i2t": 70.125,
        "r1_i2t_itc_only": 35.0,
        "chance_r1_i2t": 0.5,
        "num_images": 2000,
    }
    assert metric_table(retrieval | {"chance_r1": 0.5, "rerank_similarity_weight": 0.25}).splitlines() == [
        "| metric | value | similarity alone | chance |",
        "|---|---:|---:|---:|",
        "| R@1, image to captions | 40.00 | 35.00 | 0.50 |",
        "| mean of R@K, image to captions | 70.12 |  |  |",
        "",
        "Evaluated: 2,000 images, rerank similarity weight 0.25.",
    ]
    answers = {"accuracy": 60.0, "majority_accuracy": 33.3, "num_questions": 9, "text_only_accuracy": 41.0}
    table = metric_table(answers | {"text_only_majority_accuracy": 33.3, "text_only_num_questions": 9})
    assert "| metric | value | texts alone | chance |" in table and "| accuracy | 60.00 | 41.00 | 33.30 |" in table
    assert table.endswith("Evaluated: 9 questions. Chance is the accuracy of the most frequent answer.")
    grounding = {"accuracy_itm_testA": 61.0, "pointing_itm_testA": 70.0, "accuracy_random_proposal_testA": 18.5}
    table = metric_table(grounding | {"pointing_random_pixel_testA": 9.0, "accuracy_best_proposal_testA": 100.0})
    by_layer = metric_table(grounding | {"accuracy_itm_layer_3_testA": 61.0, "layer_itm": 3})
    assert by_layer.count("|\n") == 4 and "layer 3" not in by_layer and "layer itm 3" in by_layer
    assert "| accuracy itm testA | 61.00 | 18.50 |" in table and "| pointing itm testA | 70.00 | 9.00 |" in table
    assert table.count("|\n") == 4 and table.endswith("Evaluated: best proposal testA 100.00.")


def test_metadata_hold_what_a_model_reaches_alone():
    grounding = {"accuracy_itm": 61.0, "accuracy_random_proposal": 18.5, "accuracy_best_proposal": 100.0}
    grounding |= {
        "layer_itm": 3,
        "accuracy_itm_layer_3": 61.0,
        "accuracy_itm_layer_4": 8.0,
        "accuracy_itm_layer_4_val": 8.0,
    }
    assert [one.metric_name for one in evaluation_results("grounding", "test.json", grounding)] == ["accuracy_itm"]
    retrieval = {"r1_i2t": 12.0, "chance_r1": 0.5, "rerank_similarity_weight": 0.5, "num_images": 7}
    assert [one.metric_name for one in evaluation_results("retrieval", "test.json", retrieval)] == ["r1_i2t"]


@pytest.mark.parametrize("metadata", ["a: [", "model-index: 5", "- a list"])
def test_metadata_that_cannot_be_read_are_one_line(folder, metadata):
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n\nText\n", encoding="utf-8")
    with pytest.raises(CardError, match=r"README\.md: the card cannot be read") as caught:
        ResultCard(str(folder))
    assert "\n" not in str(caught.value)


def test_the_command_adds_what_it_prints(tmp_path, capsys):
    folder = tmp_path / "model"
    write_model_folder(folder)
    annotations = write_gallery(tmp_path)
    command = ["evaluate", str(folder), str(annotations), "--k", "3", "--add-to-card"]
    for _ in range(2):
        assert main(command) == 0
    assert f"Added to the card: {folder / 'README.md'}" in capsys.readouterr().out
    data = ModelCard.load(folder / "README.md").data
    assert {(entry.dataset_name, entry.dataset_config) for entry in data.eval_results} == {("annotations.json", "k 3")}
    names = [entry.metric_name for entry in data.eval_results]
    assert "r1_i2t" in names and len(names) == len(set(names))
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert f"vicha-hf evaluate {folder} {annotations} --task retrieval --k 3" in text
    (folder / "README.md").write_text("---\na: [\n---\n", encoding="utf-8")
    assert main(command) == 1
    assert "README.md: the card cannot be read" in capsys.readouterr().err.splitlines()[-1]
