"""The inference benchmark at toy size: both ways agree, the figures that others rely on are there, exactness of the search."""

import json

import pytest
import torch
from script_modules import load_script


@pytest.fixture(scope="module")
def benchmark():
    return load_script("examples/benchmarks/inference.py")


@pytest.fixture(scope="module")
def setting(benchmark):
    """Smaller still than `tiny`: this is about the figures, not the time."""
    tiny = benchmark.SETTINGS["tiny"]
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return benchmark.Setting(
        *(32, 4, 9, 2, 2, 60, 8, 1),
        vision_config=layers,
        text_config=tiny.text_config | layers | {"num_hidden_layers": 4, "vocab_size": 1200},
    )


def test_the_figures(benchmark, setting, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(benchmark.SETTINGS, "tiny", setting)
    result = benchmark.main(["--size", "tiny", "--json", str(tmp_path / "out" / "inference.json")])
    assert json.loads((tmp_path / "out" / "inference.json").read_text()) == {"benchmark": "inference", **result}
    assert {"rerank_speedup", "rerank_speedup_real_lengths", "vqa_rank_speedup", "max_abs_difference"} <= result.keys()
    assert result["onnx_int8_over_torch"] > 0 and result["onnx_int8_cosine"] > 0.95
    assert {"matmul_gflops", "peak_rss_gib", "vqa_exact_all_seconds", "vqa_published_top128_seconds"} <= result.keys()
    assert result["max_abs_difference"] < 1e-4 < result["rerank_score_deviation"]
    assert all(value > 0 for name, value in result.items() if name.endswith(("_seconds", "speedup", "gflops", "gib")))
    assert "ratio" in capsys.readouterr().out


def test_the_published_way_is_that_of_single_pairs(benchmark, setting):
    torch.manual_seed(1)
    comparison = benchmark.Reranking(setting)
    model, images, texts = comparison.model, comparison.images, comparison.padded["real"]
    observed, _ = benchmark.published_inference.rerank(model, images, texts, k=2)
    best = (images.embeds @ texts.embeds.T).topk(2, dim=1).indices
    assert ((observed > -100).sum(dim=1) == 2).all()
    with torch.no_grad():
        for image, texts_of_image in enumerate(best):
            expected = model.score_pairs(images, texts, torch.full((2,), image), texts_of_image)
            torch.testing.assert_close(observed[image, texts_of_image], expected, atol=1e-5, rtol=0)


def test_answers_are_as_described(benchmark):
    torch.manual_seed(0)
    answers = benchmark.random_answers(500, 3000)
    rows = [tuple(row[row != 0].tolist()) for row in answers["input_ids"]]
    assert len(set(rows)) == len(rows) == 500
    assert {row[0] for row in rows} == {benchmark.CLS} and {row[-1] for row in rows} == {benchmark.SEP}
    assert 0.5 < sum(len(row) == 3 for row in rows) / 500 < 0.75
    # Beginnings are shared, else there is nothing to gain.
    assert len({row[1] for row in rows}) < 450


def test_captions_have_the_stated_lengths(benchmark):
    lengths = benchmark.caption_lengths(5000, real=True).float()
    assert abs(lengths.mean().item() - 13.0) < 0.2 and lengths.max() <= 25
    texts = benchmark.random_texts(torch.tensor([4, 2]), 1200)
    assert texts["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert texts["input_ids"][:, 0].tolist() == [benchmark.CLS] * 2 and texts["input_ids"][1, 1] == benchmark.SEP
