"""The rule of imports that docs/architecture.md draws: every package looks down only, and nothing imports in a circle."""

import ast
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[1] / "src" / "vicha_hf"

# Lowest first: a package may import what stands above it in this list, and itself.
LAYERS = (
    "yaml_files",
    "arguments",
    "console_log",
    "command_parser",
    "whole_files",
    "folder_lock",
    "weight_files",
    "hub_upload",
    "devices",
    "models",
    "onnx_backend",
    "families",
    "text_tokenizers",
    "pipelines",
    "data",
    "visual_tokens",
    "concepts",
    "demo_corpus",
    "evaluation",
    "search",
    "demo_page",
    "reporting",
    "training",
    "conversion",
    "export",
    "mistakes",
    "cli",
)
MOST_MODEL_FILES = 55


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def resolve(name: str) -> str | None:
    """The module that holds a dotted name of this package: itself, or the one that defines it."""
    while name:
        path = PACKAGE.parent / name.replace(".", "/")
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return name
        name = name.rpartition(".")[0]
    return None


def imports_of(path: Path) -> set[str]:
    """Modules of this package that a file imports, anywhere in it, for type checkers too."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{base}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {resolve(name) for name in found if name.split(".")[0] == PACKAGE.name} - {module_name(path)}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return {module_name(path): imports_of(path) for path in sorted(PACKAGE.rglob("*.py"))}


def layer(module: str) -> str | None:
    return module.split(".")[1] if "." in module else None


def test_every_package_has_its_layer(graph):
    assert {layer(module) for module in graph} - {None} <= set(LAYERS)


def test_no_package_imports_one_above_it(graph):
    upward = [
        f"{module} imports {imported}"
        for module, imports in graph.items()
        for imported in imports
        if layer(module) and layer(imported) and LAYERS.index(layer(imported)) > LAYERS.index(layer(module))
    ]
    assert not upward


def test_nothing_imports_in_a_circle(graph):
    """Removes what imports nothing that is left, again and again; only circles remain."""
    left = dict(graph)
    while free := [module for module, imports in left.items() if not imports & left.keys()]:
        for module in free:
            del left[module]
    # A package's `__init__` names what its files define, and they import their siblings, never the `__init__`.
    assert not left


def test_models_are_flat_and_few():
    models = PACKAGE / "models"
    assert not [path for path in models.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(list(models.glob("*.py"))) <= MOST_MODEL_FILES


def test_models_import_siblings_only(graph):
    outside = {
        f"{module} imports {imported}"
        for module, imports in graph.items()
        for imported in imports
        if layer(module) == "models" and layer(imported) != "models"
    }
    assert not outside
