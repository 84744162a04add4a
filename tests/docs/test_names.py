"""Names in the documents' running text: files, commands, options and fields exist."""

import ast
import re
from pathlib import Path

import pytest

from vicha_hf.cli import build_parser


ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [file for folder in ("src", "examples") for file in sorted((ROOT / folder).rglob("*.py"))]
# Options of other programs that the documents name.
FOREIGN_OPTIONS = {
    *("num_processes", "mixed_precision", "machine_rank", "main_process_ip", "config_file", "quiet"),  # accelerate
    *("logdir", "strict", "help"),  # TensorBoard, MkDocs, every program
}


def code_spans(document: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`]+)`", text)


def commands(parser, prefix: str = "") -> set[str]:
    """Names of all subcommands, those below them with a space."""
    found = set()
    for action in parser._actions:
        if hasattr(action, "choices") and isinstance(action.choices, dict):
            for name, below in action.choices.items():
                found |= {f"{prefix}{name}"} | commands(below, f"{prefix}{name} ")
    return found


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Fields of every dataclass and configuration, and options of every parser, with underscores."""
    found = set(FOREIGN_OPTIONS)
    for file in SOURCES:
        text = file.read_text(encoding="utf-8")
        found |= {option.replace("-", "_") for option in re.findall(r"[\"']--([\w-]+)[\"']", text)}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_files_exist(document):
    named = {
        path
        for span in code_spans(document)
        for path in re.findall(r"(?:examples|tests|docs|src|model_cards)/[\w./-]+\.(?:py|yaml|md|svg)", span)
        if path.upper() != path and not re.search(r"(FAMILY|TASK|NAME)", path)
    }
    assert not [path for path in named if not (ROOT / path).is_file()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_commands_exist(document):
    known = commands(build_parser())
    unknown = []
    for span in code_spans(document):
        match = re.match(r"vicha-hf ([a-z][\w-]*)(?: ([a-z][\w-]*))?", span)
        if match and match[1] not in known:
            unknown.append(span)
        elif match and match[2] and any(name.startswith(f"{match[1]} ") for name in known):
            unknown += [] if f"{match[1]} {match[2]}" in known else [span]
    assert not unknown


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_options_exist(document, options):
    named = {option for span in code_spans(document) for option in re.findall(r"(?:^|\s)--([a-z][\w.-]*)", span)}
    unknown = sorted(
        option
        for option in named
        if not option.endswith(".FIELD") and option.split(".")[-1].replace("-", "_").removeprefix("no_") not in options
    )
    assert not unknown


def test_every_benchmark_is_described():
    scripts = [
        file.name
        for file in sorted((ROOT / "examples/benchmarks").glob("*.py"))
        if f"python examples/benchmarks/{file.name}" in file.read_text(encoding="utf-8")
    ]
    described = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert len(scripts) >= 4
    assert not [name for name in scripts if f"examples/benchmarks/{name}" not in described]
