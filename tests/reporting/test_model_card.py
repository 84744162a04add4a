"""Model cards: the Hub can read them, and they claim nothing that was not given."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from script_modules import load_script

from vicha_hf import SimlaConfig, ViChaConfig
from vicha_hf.evaluation.retrieval import RetrievalScores
from vicha_hf.reporting.model_card import build_model_card, method_name
from vicha_hf.reporting.result import Result


ROOT = Path(__file__).parents[2]


@pytest.fixture
def metrics():
    pairs = list(range(7))
    scores = torch.rand(7, 7, generator=torch.Generator().manual_seed(0))
    return RetrievalScores(scores, scores, scores.T).metrics([[index] for index in pairs], pairs)


def test_results_are_in_the_metadata_and_in_the_table(metrics, tmp_path):
    other = {name: value / 2 for name, value in metrics.items()}
    card = build_model_card(
        model_id="org/vicha-tiny",
        summary="A summary.",
        architecture={"parameters": 123},
        data="Some images.",
        training={"steps": 17},
        dataset_type="demo",
        dataset_name="the demo",
        results=[Result("test", "Images", "with", metrics), Result("test_other", "Images", "without", other)],
    )
    card.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.model_name == "vicha-tiny"
    assert loaded.data.pipeline_tag == "zero-shot-image-classification"
    found = {(result.dataset_config, result.metric_name): result.metric_value for result in loaded.data.eval_results}
    assert len(found) == 2 * 2 * 6
    assert found["test", "R@1, image to captions"] == round(metrics["r1_i2t"], 2)
    assert found["test_other", "R@5, caption to images, similarity alone"] == round(other["r5_t2i_itc_only"], 2)
    row = next(line for line in loaded.text.splitlines() if line.startswith("| Images, with | re-ranked"))
    assert [cell.strip() for cell in row.split("|")[3:-1]] == [
        f"{metrics[f'r{k}_{way}']:.1f}" for way in ("i2t", "t2i") for k in (1, 5, 10)
    ]
    assert 'from_pretrained("org/vicha-tiny", trust_remote_code=True)' in loaded.text
    assert "{{" not in loaded.content and "{%" not in loaded.content


def test_a_card_without_weights_says_so_and_has_no_numbers():
    card = build_model_card(model_id="org/vicha-base", summary="Base.", architecture={"layers": 12})
    assert "No weights of this configuration have been trained" in card.text
    assert "Not evaluated" in card.text
    assert card.data.eval_results is None
    assert "How to use" not in card.text


def test_results_of_nothing_are_an_error(metrics):
    with pytest.raises(ValueError, match="training"):
        build_model_card(
            model_id="org/x",
            summary="",
            architecture={},
            results=[Result("test", "Images", "with", metrics)],
        )


def test_the_base_card_is_what_its_script_writes(tmp_path):
    committed = ModelCard.load(ROOT / "model_cards" / "vicha-base.md")
    summary = committed.text.split("# vicha-base")[1].split("**No weights")[0].strip()
    config = ROOT / "examples/configs/vicha/base.yaml"
    command = ["--config", str(config), "--model_id", "org/vicha-base", "--summary", summary]
    card, other = tmp_path / "card.md", tmp_path / "notes.md"
    # Again in the place of the first, and never in that of anything else.
    for _ in range(2):
        load_script("examples/model_card.py").main([*command, "--output", str(card)])
        assert ModelCard.load(card).content == committed.content
    other.write_text("# my notes\n")
    with pytest.raises(OSError, match="there already and no card of the model"):
        load_script("examples/model_card.py").main([*command, "--output", str(other)])
    assert other.read_text() == "# my notes\n"
    finetuning = [
        "--config",
        str(ROOT / "examples/configs/vicha/vqa_v2.yaml"),
        *command[2:],
        "--output",
        str(tmp_path / "new.md"),
    ]
    with pytest.raises(ValueError, match="starts from outputs/base/model, which decides the model"):
        load_script("examples/model_card.py").main(finetuning)


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (ViChaConfig(), "ViCHA"),
        (ViChaConfig(use_concepts=False, hierarchical_itc_weight=0, mim_weight=0), "ALBEF"),
        (ViChaConfig(use_concepts=False, hierarchical_itc_weight=0), "ViCHA"),
        (SimlaConfig(), "SIMLA"),
    ],
)
def test_a_configuration_is_called_what_papers_call_it(config, method):
    assert method_name(config) == method


def test_albefs_card_cites_albef_and_gives_no_concepts():
    options = {"architecture": {}, "training": {"steps": 1}, "family": "albef"}
    card = build_model_card(model_id="org/albef-tiny", summary="A summary.", **options)
    assert "arXiv:2107.07651" in card.text and "albef" in card.data.tags
    assert "concepts" not in card.text and "2208.13628" not in card.text and "2203.14395" not in card.text


def test_licence_and_language_are_open_unless_given_and_numbers_are_round():
    card = build_model_card(
        model_id="a/b", summary="s", architecture={}, training={"seconds": 492.926579787003}, license="cc-by-4.0"
    )
    assert card.data.license == "cc-by-4.0" and card.data.language is None
    assert "| seconds | 492.9 |" in card.text
    assert build_model_card(model_id="a/b", summary="s", architecture={}).data.license is None
