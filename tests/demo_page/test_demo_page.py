"""The page in a real browser: what a visitor types and clicks changes what it shows. It runs from an exported folder."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from head_checks import tiny_head
from playwright.sync_api import expect, sync_playwright
from tiny_model_folder import tiny_processor, write_gallery, write_model_folder

from vicha_hf.cli import main
from vicha_hf.demo_page.interface import build_page
from vicha_hf.demo_page.models import PageModels
from vicha_hf.search.index_files import Manifest


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60_000


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Models of four tasks, the one for retrieval with a concept index, and five images."""
    root = tmp_path_factory.mktemp("page")
    write_gallery(root)
    write_model_folder(root / "retrieval")
    (root / "words.txt").write_text("dog\ncat\ngrass\nsnow\n")
    assert main(["concepts", "index", str(root / "retrieval"), "--vocabulary", str(root / "words.txt")]) == 0
    for task in ("vqa", "reasoning"):
        folder = root / task
        folder.mkdir()
        tiny_head(task).save_pretrained(folder)
        tiny_processor(folder).save_pretrained(folder)
    (root / "vqa/answer_list.json").write_text(json.dumps(["red", "white tree", "grass"]))
    return root


@pytest.fixture(scope="module")
def exported(root) -> Path:
    models = [str(root / name) for name in ("retrieval", "vqa", "reasoning")]
    assert (
        main(["demo-page", *models, "--images", str(root / "annotations.json"), "--export", str(root / "space")]) == 0
    )
    return root / "space"


@pytest.fixture(scope="module")
def address(exported, root):
    """The exported folder's page, moved and served by a process of its own."""
    moved = root / "elsewhere"
    shutil.copytree(exported, moved)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    with (root / "page.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=moved, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 180
        while "Running on local URL" not in (root / "page.log").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (root / "page.log").read_text()[-3000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def page(address):
    if BROWSER is None:
        pytest.skip("no Chromium is installed on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        yield page
        browser.close()


def open_tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def give(page, name, path):
    page.set_input_files(f"#{name} input[type=file]", str(path))
    expect(page.locator(f"#{name} img")).to_be_visible(timeout=PATIENCE)


def test_every_tab_answers(page, root):
    # One browser for all: each part types, clicks, and sees the result change.
    images = page.locator("#search-results img")
    expect(page.locator("#search-text")).to_be_visible(timeout=PATIENCE)
    expect(images).to_have_count(0)
    page.fill("#search-text textarea", "two dogs running in the snow")
    page.click("#search-button")
    expect(images).to_have_count(5, timeout=PATIENCE)
    before = page.inner_text("#search-results")
    assert "1: cosine" in before and "score" in before
    give(page, "search-image", root / "2.png")
    page.click("#search-button")
    expect(page.locator("#search-results")).not_to_contain_text("score", timeout=PATIENCE)
    # The query is one of the images, which is found first.
    first = page.locator("#search-results").inner_text()
    assert float(re.search(r"1: cosine ([\d.]+)", first).group(1)) > 0.99

    open_tab(page, "Ground")
    page.click("#ground-button")
    expect(page.get_by_text("Choose an image first.")).to_be_visible(timeout=PATIENCE)
    give(page, "ground-image", root / "0.png")
    page.fill("#ground-text textarea", "a red ball")
    page.click("#ground-button")
    expect(page.locator("#ground-result img")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#ground-score")).to_contain_text("Score", timeout=PATIENCE)

    open_tab(page, "Ask")
    give(page, "ask-image", root / "0.png")
    page.fill("#ask-text textarea", "is the dog red?")
    page.press("#ask-text textarea", "Enter")
    for answer in ("red", "white tree", "grass"):
        expect(page.locator("#ask-result")).to_contain_text(answer, timeout=PATIENCE)

    open_tab(page, "Compare")
    give(page, "compare-left", root / "0.png")
    give(page, "compare-right", root / "1.png")
    page.fill("#compare-text textarea", "two dogs")
    page.click("#compare-button")
    expect(page.locator("#compare-result table")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#compare-result")).to_contain_text("cosine of")

    open_tab(page, "Two images, one statement")
    give(page, "judge-left", root / "0.png")
    give(page, "judge-right", root / "1.png")
    page.fill("#judge-text textarea", "two dogs")
    page.click("#judge-button")
    expect(page.locator("#judge-result")).to_contain_text("True", timeout=PATIENCE)

    open_tab(page, "Concepts")
    give(page, "concepts-image", root / "0.png")
    page.click("#concepts-button")
    for concept in ("dog", "cat", "grass", "snow"):
        expect(page.locator("#concepts-result")).to_contain_text(concept, timeout=PATIENCE)


def test_an_exported_folder_is_whole(exported):
    assert {path.name for path in exported.iterdir()} == {
        "app.py",
        "README.md",
        "requirements.txt",
        "models",
        "images",
        "vicha_hf",
    }
    assert (exported / "README.md").read_text().startswith("---\ntitle:")
    assert len(list((exported / "images").glob("*.png"))) == 5
    assert not list(exported.rglob("__pycache__"))


def test_a_page_goes_on_with_an_index_as_it_was_made(root, tmp_path):
    (tmp_path / "images").mkdir()
    for image in root.glob("*.png"):
        shutil.copy(image, tmp_path / "images")
    index, images, model = tmp_path / "index", str(tmp_path / "images"), str(root / "retrieval")
    assert main(["index", images, model, "--concepts", "auto", "--output", str(index)]) == 0
    shards = sorted(path.name for path in index.glob("shard-*"))
    assert build_page(PageModels.find([model]), images, str(index)) is not None
    assert sorted(path.name for path in index.glob("shard-*")) == shards and Manifest.read(index).concepts == "auto"


def test_models_are_found_by_what_they_were_trained_for(root):
    models = PageModels.find([str(root / "retrieval"), str(root / "vqa")])
    assert set(models.folders) == {"retrieval", "grounding", "vqa"}
    assert set(PageModels.find([str(root / "reasoning")]).folders) == {"reasoning"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/nowhere"], "nowhere"),
        (["{root}/vqa", "--images", "{root}/annotations.json"], "needs a pretrained or retrieval model"),
        (["{root}/vqa", "--export", "{root}/vqa"], "is not empty"),
    ],
)
def test_mistakes_are_one_line(root, capsys, arguments, message):
    assert main(["demo-page", *(word.format(root=root) for word in arguments)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vicha-hf demo-page: ") and message in error
