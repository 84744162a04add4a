"""The style of documents, as CONTRIBUTING describes it."""

import re
from pathlib import Path

import pytest
from prose import read_markdown, words


ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/benchmarks/RESULTS.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "model_cards").glob("*.md")),
]
SOURCES = [file for folder in ("src", "examples") for file in sorted((ROOT / folder).rglob("*.py"))]
LONGEST_SENTENCE = 30
LONGEST_README = 150
PICTURE = re.compile(r"\bpictures?\b", re.IGNORECASE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_sentences_are_short(document):
    long = [
        f"{passage.place}: {words(sentence)} words: {sentence}"
        for passage in read_markdown(document)
        for sentence in passage.sentences()
        if words(sentence) > LONGEST_SENTENCE
    ]
    assert not long


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_documents_say_image(document):
    """Outside quotation marks, in which CONTRIBUTING names the word, and code, in which a file's name may hold it."""
    text = re.sub(r"`[^`]*`|\"[^\"]*\"", "", "\n".join(passage.text for passage in read_markdown(document)))
    assert not PICTURE.findall(text)


def test_code_says_image():
    """In comments and docstrings; captions of the demo corpus speak as people do."""
    prose = {
        file.relative_to(ROOT): [
            line
            for line in file.read_text(encoding="utf-8").splitlines()
            if PICTURE.search(line) and not re.search(r"[\"'][^\"']*\bpictures?\b", line, re.IGNORECASE)
        ]
        for file in SOURCES
    }
    assert not {file: lines for file, lines in prose.items() if lines}


def test_the_readme_is_short_and_has_the_systems_and_a_result_as_images():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_README
    images = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert images == ["docs/images/two_systems.svg", "docs/images/ablation.svg"]
    assert all((ROOT / image).is_file() for image in images)


def test_results_name_date_command_and_machine():
    """Every table of figures stands below a line with the date of its measurement."""
    sections = re.split(r"^#{2,3} ", (ROOT / "examples/benchmarks/RESULTS.md").read_text(encoding="utf-8"), flags=re.M)
    undated = [
        section.splitlines()[0]
        for section in sections[1:]
        if re.search(r"^\|", section, re.M) and not re.search(r"^20\d\d-\d\d-\d\d\b.* · ", section, re.M)
    ]
    assert not undated


def test_read_markdown_counts_prose_only(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(
        "# A title\n\nOne two\nthree. Four [five](six.md) `seven eight`.\n\n```python\nnine ten\n```\n\n"
        "| a | b c |\n|---|---|\n\n- item one\n- item two\n\n$$\nx y z\n$$\n"
    )
    counted = [[words(sentence) for sentence in passage.sentences()] for passage in read_markdown(file)]
    assert [count for count in counted if count != [0]] == [[2], [3, 3], [1], [2], [2], [2]]


# Pages about the whole, or of the kind of a reference.
WITHOUT_ORDER = {"index", "quickstart", "method", "families", "options", "troubleshooting", "architecture"}


ORDERED = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.stem not in WITHOUT_ORDER]


@pytest.mark.parametrize("page", ORDERED, ids=lambda page: page.stem)
def test_a_page_goes_from_use_to_limits(page):
    headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert (headings[0], headings[-1]) == ("Use", "Limits")
    order = [heading for heading in headings if heading in ("Use", "Options", "How it works", "Limits")]
    assert order == sorted(order, key=("Use", "Options", "How it works", "Limits").index)
