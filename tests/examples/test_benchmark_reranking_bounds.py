"""The benchmark of what re-ranking could gain: queries counted one by one."""

import json
from itertools import pairwise

import pytest
import torch
from script_modules import load_script
from tiny_model_folder import write_gallery, write_model_folder

from vicha_hf.evaluation.retrieval import RetrievalScores


@pytest.fixture(scope="module")
def benchmark():
    return load_script("examples/benchmarks/reranking_bounds.py")


def gallery():
    """Four images with five captions, of which the last two belong to the last image."""
    torch.manual_seed(1)
    similarity, match_i2t, match_t2i = torch.rand(4, 5), torch.rand(4, 5), torch.rand(5, 4)
    scores = RetrievalScores(similarity, match_i2t, match_t2i, temperature=0.5).reweighted(0.7)
    return scores, (similarity, match_i2t, match_t2i), [[0], [1], [2], [3, 4]], [0, 1, 2, 3, 3]


def test_every_query_is_counted(benchmark):
    scores, (similarity, match_i2t, match_t2i), captions_of_image, image_of_caption = gallery()
    expected = {"similarity": [], "match": [], "combined": [], "either": []}
    for queries, first, second, truth in (
        (4, similarity, match_i2t, lambda query, found: found in captions_of_image[query]),
        (5, similarity.T, match_t2i, lambda query, found: found == image_of_caption[query]),
    ):
        counts = dict.fromkeys(expected, 0)
        for query in range(queries):
            both = second[query] + 0.7 / 0.5 * first[query]
            right = {
                "similarity": truth(query, int(first[query].argmax())),
                "match": truth(query, int(second[query].argmax())),
                "combined": truth(query, int(both.argmax())),
            }
            right["either"] = right["similarity"] or right["match"]
            counts = {name: counts[name] + right[name] for name in counts}
        for name, count in counts.items():
            expected[name].append(100 * count / queries)
    found = benchmark.recalls(scores, captions_of_image, image_of_caption)
    for name, (i2t, t2i) in expected.items():
        assert getattr(found, name) == pytest.approx((i2t + t2i) / 2)
    # The four differ here, so that none can stand for another.
    assert all(abs(one - other) > 1 for one, other in pairwise(sorted(vars(found).values())))


def test_the_script(benchmark, tmp_path, capsys):
    write_model_folder(tmp_path / "model")
    file = str(write_gallery(tmp_path))
    figures = benchmark.main([str(tmp_path / "model"), file, "--k", "4", "--json", str(tmp_path / "figures.json")])
    assert json.loads((tmp_path / "figures.json").read_text()) == {"benchmark": "reranking_bounds", **figures}
    row = figures[file]
    assert max(row["similarity"], row["match"]) <= row["either"] <= 100
    assert f"{row['either'] - row['similarity']:.1f}" in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(SystemExit):
        benchmark.main([str(tmp_path / "model"), file, "--k", "0"])
