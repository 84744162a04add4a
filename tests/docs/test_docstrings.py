"""The style of docstrings, as CONTRIBUTING describes it."""

import ast
import re
from pathlib import Path

import pytest
from prose import Docstring, read_docstrings, words


ROOT = Path(__file__).parents[2]
DOCSTRINGS = [
    docstring
    for folder in ("src/vicha_hf", "examples")
    for file in sorted((ROOT / folder).rglob("*.py"))
    for docstring in read_docstrings(file)
]
LONGEST_SENTENCE = 30
# A question word announces what the reader wants to be told; other words of the list begin a subordinate clause.
NO_OPENINGS = {
    *("What", "How", "Where", "Why", "Which", "Who", "When"),
    *("If", "That", "As", "In", "On", "For", "To", "With", "By", "Once", "This", "These", "Here"),
}


def test_docstrings_are_found():
    assert len(DOCSTRINGS) > 900


def test_a_docstring_opens_with_a_noun_or_a_verb():
    openings = [
        docstring.place for docstring in DOCSTRINGS if re.split(r"[\s:,.]", docstring.text.strip())[0] in NO_OPENINGS
    ]
    assert not openings


def test_sentences_of_docstrings_are_short():
    long = [
        f"{docstring.place}: {words(sentence)} words: {sentence}"
        for docstring in DOCSTRINGS
        for passage in docstring.passages()
        for sentence in passage.sentences()
        if words(sentence) > LONGEST_SENTENCE
    ]
    assert not long


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Scores pairs. Higher is better.", [2, 3]),
        ("Scores pairs.\n\nArgs:\n    images: [B, 3], see `the other one`.\n    k: candidates.", [2, 5, 2]),
        ("Scores pairs of\nimages.\n\n```python\n>>> one two three four\n```", [4]),
    ],
)
def test_sentences_are_counted(text, count):
    passages = Docstring("here", text).passages()
    assert [words(sentence) for passage in passages for sentence in passage.sentences()] == count


# A pipeline takes the options of its call apart in `_sanitize_parameters`.
MAKING_AND_CALLING = ("__init__", "__call__", "_sanitize_parameters")


def parameters(function: ast.FunctionDef) -> set[str]:
    arguments = function.args
    starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return {argument.arg for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *starred]}


def fields(name: str, classes: dict[str, ast.ClassDef]) -> set[str]:
    """Names that a class can be made or called with, those of its bases in this package included."""
    found = set()
    for statement in classes[name].body:
        if isinstance(statement, ast.AnnAssign):
            found.add(statement.target.id)
        elif isinstance(statement, ast.FunctionDef) and statement.name in MAKING_AND_CALLING:
            found |= parameters(statement)
        elif isinstance(statement, ast.Assign) and statement.targets[0].id == "text_field":
            # The keyword by which a pipeline takes its text.
            found.add(statement.value.value)
    bases = (base.value if isinstance(base, ast.Subscript) else base for base in classes[name].bases)
    inherited = [base.id for base in bases if isinstance(base, ast.Name) and base.id in classes and base.id != name]
    return found.union(*(fields(base, classes) for base in inherited))


def test_documented_arguments_exist():
    nodes = [
        (file, node)
        for file in sorted((ROOT / "src/vicha_hf").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    ]
    classes = {node.name: node for _, node in nodes if isinstance(node, ast.ClassDef)}
    unknown, checked = [], 0
    for file, node in nodes:
        section = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", ast.get_docstring(node) or "", re.MULTILINE)
        entries = re.findall(r"^ {4}([\w`, *]+?)(?: \(.*?\))?: ", section[1], re.MULTILINE) if section else []
        known = fields(node.name, classes) if isinstance(node, ast.ClassDef) else parameters(node)
        names = [name.strip(" `*") for entry in entries for name in entry.split(",")]
        checked += len(names)
        unknown += [f"{file.name}:{node.lineno} {node.name}: {name}" for name in names if name not in known]
    assert checked > 500
    assert not unknown
