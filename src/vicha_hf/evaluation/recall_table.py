"""Recall of several conditions side by side, for the terminal."""

from collections.abc import Mapping

from .recall import CUTOFFS, DIRECTIONS


def format_recall_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics of [`~vicha_hf.evaluation.retrieval.evaluate_retrieval`] by condition, as a table for the terminal."""
    width = max(map(len, results))
    lines = [
        f"{'':{width}s}  {'':10s}  image -> captions      caption -> images",
        f"{'':{width}s}  {'':10s}     R@1    R@5   R@10       R@1    R@5   R@10",
    ]
    stages = (
        ("re-ranked", "r{k}_{way}"),
        ("match only", "r{k}_{way}_match_only"),
        ("similarity", "r{k}_{way}_itc_only"),
        ("chance", "chance_r{k}_{way}"),
    )
    for title, metrics in results.items():
        for number, (stage, pattern) in enumerate(stages):
            cells = ["".join(f"{metrics[pattern.format(k=k, way=way)]:7.1f}" for k in CUTOFFS) for way in DIRECTIONS]
            lines.append(f"{title if number == 0 else '':{width}s}  {stage:10s} {cells[0]}   {cells[1]}")
    return "\n".join(lines)
