"""Prose of Markdown files and docstrings, cut into sentences."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


SECTION = re.compile(r"(Args|Returns|Raises|Yields|References?|Examples?|Attributes|Inputs):")
# `name: text` and `name (type): text`, as a docstring lists arguments.
ENTRY = re.compile(r"[\w`\"\[\]., *]+(\(.*?\))?: ")
# Lines that end a paragraph of Markdown: headings, tables, directives of mkdocstrings and Jinja, HTML.
SEPARATORS = ("#", "|", ":::", "<", "{%", "{{")
LISTED = re.compile(r"([-*]|\d+\.|\[\d+\]) ")


@dataclass(frozen=True)
class Passage:
    """A paragraph, list item, table cell or heading, and where it stands."""

    place: str
    text: str

    def sentences(self) -> list[str]:
        """Sentences end with a full stop, a question or an exclamation mark before a capital, a number or code."""
        return re.split(r"(?<=[.!?])[\"”)\]]*\s+(?=[A-Z`(\[\"$*0-9])", self.text)


def words(sentence: str) -> int:
    """Counts words; a code span is one word, a dash or an operator none."""
    sentence = re.sub(r"`[^`]*`", "code", sentence)
    sentence = re.sub(r"\$[^$]*\$", "formula", sentence)
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def read_markdown(file: Path) -> Iterator[Passage]:
    """Passages of a Markdown file, without code blocks, equations, metadata and the targets of links."""
    text = file.read_text(encoding="utf-8")
    # Blanked, not cut out: line numbers stay.
    for pattern in (r"\A---\n.*?^---$", r"^```.*?^```$", r"^\$\$.*?^\$\$$", r"<!--.*?-->"):
        text = re.sub(pattern, lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    start, lines = 0, []
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        stripped = line.strip()
        begins = not stripped or stripped.startswith(SEPARATORS) or LISTED.match(stripped)
        if begins and lines:
            yield Passage(f"{file.name}:{start}", " ".join(lines))
            lines = []
        if stripped.startswith("|"):
            for cell in stripped.strip("|").split(" | "):
                yield Passage(f"{file.name}:{number}", cell.strip())
        elif stripped and not stripped.startswith(("{%", "{{", ":::", "<")):
            start = start if lines else number
            lines.append(re.sub(r"^(#+|[-*]|\d+\.) ", "", stripped))


@dataclass(frozen=True)
class Docstring:
    place: str
    text: str

    def passages(self) -> Iterator[Passage]:
        """Paragraphs and the entries of argument lists, without code."""
        text = re.sub(r"```.*?```", "", self.text, flags=re.DOTALL)
        lines, depth = [], 0
        for line in [*text.split("\n"), ""]:
            stripped, indent = line.strip(), len(line) - len(line.lstrip())
            heading = SECTION.fullmatch(stripped)
            entry = LISTED.match(stripped) or (indent and (not lines or indent <= depth) and ENTRY.match(stripped))
            if (not stripped or heading or entry) and lines:
                yield Passage(self.place, " ".join(lines))
                lines = []
            if stripped and not heading:
                if not lines:
                    depth = indent
                lines.append(stripped)


def read_docstrings(file: Path) -> Iterator[Docstring]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield Docstring(f"{file.name}:{getattr(node, 'lineno', 1)} {getattr(node, 'name', '')}", text)
