"""The report: complete, self-contained, and safe against what captions may contain."""

import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from vicha_hf.evaluation.recall_table import format_recall_table
from vicha_hf.evaluation.retrieval import RetrievalScores
from vicha_hf.reporting.gallery import CaptionQuery, ImageQuery, best_candidates, evenly_spaced
from vicha_hf.reporting.result import Result
from vicha_hf.reporting.run_report import LOSS_TITLES, RunReport


VOID = {"meta", "img", "line", "polyline", "circle"}


class TagBalance(HTMLParser):
    """Collects what is opened and never closed, and every address that the page names."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def metrics():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(30, 30, generator=generator) + torch.eye(30) * 0.7
    pairs = list(range(30))
    return RetrievalScores(scores, scores + torch.eye(30), scores.T).metrics([[index] for index in pairs], pairs)


@pytest.fixture
def report(metrics):
    image = Image.new("RGB", (8, 8), (200, 30, 30))
    return RunReport(
        title="A run",
        summary="What it was",
        tiles=[("12.3 %", "R@1")],
        results=[Result("test", "Held-out images", "with visual concepts", metrics)],
        log=[{"step": step, **dict.fromkeys(LOSS_TITLES, 5.0 / step)} for step in range(1, 9)]
        + [{"step": 8, "evaluation": {"r1_i2t": 1.0}}],
        caption_queries=[CaptionQuery("a <script>alert(1)</script> & more", [image, image], [False, True], 2)],
        image_queries=[ImageQuery(image, ["dog <b>"], ["one", "two"], [True, False], None)],
        facts={"Training": {"steps": 1234, "share": 0.123456, "on": True}},
        config={"hidden_size": 32},
        credits="Drawn by hand",
    )


def test_the_page_is_whole_and_needs_nothing_else(report, tmp_path):
    html = report.write(tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    page = TagBalance()
    page.feed(html)
    assert page.open == []
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"@import|url\(|<link|<script", html)
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html


def test_every_loss_has_a_chart_and_every_number_its_place(report, metrics):
    html = report.to_html()
    assert html.count('<svg class="chart"') == len(LOSS_TITLES)
    for k in (1, 5, 10):
        for way in ("i2t", "t2i"):
            for name in (f"r{k}_{way}", f"r{k}_{way}_itc_only", f"chance_r{k}_{way}"):
                assert f">{metrics[name]:.1f}</td>" in html
    assert "1,234" in html and "0.1235" in html and "hidden_size" in html and "Drawn by hand" in html


def test_words_of_the_data_cannot_become_markup(report):
    html = report.to_html()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in html
    assert "dog &lt;b&gt;" in html


def test_a_run_without_log_or_gallery_still_makes_a_page(metrics):
    html = RunReport("A run", "", [], [Result("test", "Images", "all", metrics)], log=[]).to_html()
    assert "Training losses" not in html and "What it retrieves" not in html


def test_best_candidates():
    scores = torch.tensor([0.1, 0.9, 0.5, -100.0])
    assert best_candidates(scores, [2], 2, num_ranked=3) == ([1, 2], [False, True], 2)
    assert best_candidates(scores, [3], 2, num_ranked=3) == ([1, 2], [False, False], None)


def test_evenly_spaced():
    assert evenly_spaced(200, 4) == [0, 50, 100, 150]
    assert evenly_spaced(3, 6) == [0, 1, 2]


def test_the_table_for_the_terminal(metrics):
    lines = format_recall_table({"first": metrics, "second one": metrics}).splitlines()
    assert len(lines) == 2 + 2 * 4
    assert len({len(line) for line in lines[2:]}) == 1
    assert lines[2].startswith("first     ") and f"{metrics['r1_i2t']:.1f}" in lines[2]
