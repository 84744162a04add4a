"""Draws `docs/images/packages.svg` from the layers that tests/test_architecture.py holds.

python docs/site/draw_packages.py
"""

import sys
from html import escape
from pathlib import Path


ROOT = Path(__file__).parents[2]
DRAWING = ROOT / "docs/images/packages.svg"
# Contents and colour of each package; files between two packages share a row.
CONTENTS = {
    "models": ("encoders, objectives, heads, processors", "#d7ecff"),
    "onnx_backend": ("exported folders in a model's place", "#d7ecff"),
    "data": ("annotations, datasets, collators", "#e3f2d9"),
    "visual_tokens": ("tokenizers of SIMLA's patches", "#e3f2d9"),
    "concepts": ("vocabulary, embedding, selection", "#e3f2d9"),
    "demo_corpus": ("the embedded corpus, easy-VQA", "#e3f2d9"),
    "evaluation": ("metrics, sharded prediction", "#fff0cc"),
    "search": ("index and search of images", "#fff0cc"),
    "demo_page": ("a page to try models on", "#fff0cc"),
    "export": ("models for other runtimes", "#fff0cc"),
    "reporting": ("report pages, model cards", "#fff0cc"),
    "training": ("loop, optimizer, checkpoints", "#fff0cc"),
    "conversion": ("published checkpoints to folders", "#f6dcf0"),
}
HEIGHT, GAP, TOP, WIDTH = 34, 6, 56, 820


def rows(layers: list[str]) -> list[tuple[str, str, str]]:
    """Name, contents and colour of each row, the highest layer first."""
    found: list[tuple[str, str, str]] = []
    for layer in reversed(layers):
        if layer in CONTENTS:
            found.append((layer, *CONTENTS[layer]))
        elif found and not found[-1][0]:
            found[-1] = ("", f"{found[-1][1]}, {layer}", found[-1][2])
        else:
            found.append(("", layer, "#f5f7f8"))
    return found


def draw(layers: list[str]) -> str:
    """The drawing as SVG."""
    drawn = rows(layers)
    height = TOP + len(drawn) * (HEIGHT + GAP) + 24
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="Helvetica, Arial, \'DejaVu Sans\', sans-serif" font-size="14" role="img" '
        'aria-labelledby="title">',
        '  <title id="title">Packages of vicha_hf: each may import those below it</title>',
        '  <defs><marker id="down" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="#37474f"/></marker></defs>',
        f'  <rect width="{WIDTH}" height="{height}" rx="12" fill="#ffffff"/>',
        '  <text x="62" y="34" font-size="18" font-weight="bold" fill="#1c2b33">vicha_hf</text>',
        f'  <path d="M38 {TOP} V{height - 34}" stroke="#37474f" stroke-width="2" marker-end="url(#down)"/>',
        f'  <text transform="translate(24 {height // 2}) rotate(-90)" text-anchor="middle" fill="#37474f">may import'
        "</text>",
    ]
    for number, (name, contents, colour) in enumerate(drawn):
        y = TOP + number * (HEIGHT + GAP)
        lines.append(
            f'  <rect x="62" y="{y}" width="{WIDTH - 84}" height="{HEIGHT}" rx="6" fill="{colour}" stroke="#90a4ae"/>'
        )
        if name:
            lines.append(f'  <text x="78" y="{y + 22}" font-weight="bold" fill="#1c2b33">{name}</text>')
        left = 230 if name else 78
        lines.append(f'  <text x="{left}" y="{y + 22}" fill="#1c2b33">{escape(contents)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    from test_architecture import LAYERS

    DRAWING.write_text(draw(list(LAYERS)), encoding="utf-8")
