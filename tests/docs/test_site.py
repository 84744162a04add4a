"""The documentation builds as a site without a warning, and needs nothing from another server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vicha_hf


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    process = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert process.returncode == 0, process.stderr[-4000:]
    assert "WARNING" not in process.stderr
    return folder


def test_every_document_has_a_page(site):
    documents = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    pages = {path.relative_to(site) for path in site.rglob("*.html")}
    assert documents | {Path("results.html"), Path("contributing.html"), Path("changelog.html")} <= pages


def test_nothing_comes_from_another_server(site):
    """Links may lead away; scripts, styles, fonts and images may not come from elsewhere."""
    fetched = []
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched += re.findall(r"<(?:script|img|iframe)[^>]+src=\"?(?:https?:)?//[^\s>\"]+", text)
        fetched += re.findall(
            r"<link[^>]+rel=\"?(?:stylesheet|preconnect)\"?[^>]*href=\"?(?:https?:)?//[^\s>\"]+", text
        )
    assert not fetched


def test_equations_are_drawn_without_a_script(site):
    page = (site / "method.html").read_text(encoding="utf-8")
    assert page.count("<math") > 20
    assert "arithmatex" not in page
    assert "<mfrac>" in page


@pytest.mark.parametrize("name", vicha_hf.__all__)
def test_the_reference_has_every_public_name(site, name):
    pages = (path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    assert any(f'id="vicha_hf.{name}"' in page for page in pages)


def test_links_between_pages_lead_somewhere(site):
    """Files of the repository that are no pages became plain text; everything else is in the site."""
    dead = [
        f"{page.relative_to(site)}: {target}"
        for page in site.rglob("*.html")
        if page.name != "404.html"
        for target in re.findall(r"<a [^>]*href=\"([^\"#]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists()
    ]
    assert not dead
