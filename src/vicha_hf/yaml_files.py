"""Configuration files in YAML or JSON, read in bounded time and memory, with errors that name file and line."""

from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode


# Far more than a configuration needs; a file of data given by mistake is refused before it is read.
MAX_BYTES = 1 << 20
# Values of a file after its aliases are written out.
MAX_VALUES = 100_000


def read_yaml_text(path: str | Path) -> str:
    """
    The text of a configuration file, once it is known to be harmless.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no regular file, larger than 1 MiB, not UTF-8, no YAML, no mapping of names to values, a name that
            comes twice, or aliases that stand for too much. The message names the file.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: name a YAML file.")
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file: name a YAML file.")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES >> 20} MiB: that is no configuration.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8.") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        problem = _problem(root)
        if problem is None:
            yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        message = str(error).replace('in "<unicode string>", ', "")
        raise ValueError(f"{path} is not YAML: {message}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply, or stands inside itself.") from error
    if problem is not None:
        raise ValueError(f"{path} {problem}")
    return text


def read_yaml_mapping(path: str | Path) -> dict:
    """The content of a configuration file; raises as [`read_yaml_text`]."""
    return yaml.safe_load(read_yaml_text(path))


def repeated_name(text: str) -> str | None:
    """The first name that a value in YAML, as the command line has it, gives twice; None where none does, or it is no YAML."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        found = _repeated_names(node, set())
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return found and found[0]


def _problem(root: Node | None) -> str | None:
    if not isinstance(root, MappingNode):
        return "holds no mapping of names to values."
    if _num_values(root, {}) > MAX_VALUES:
        return f"stands for more than {MAX_VALUES:,} values through its aliases (&, *)."
    repeated = _repeated_names(root, set())
    return repeated and "gives {} twice, on lines {} and {}.".format(*repeated)


def _num_values(node: Node, known: dict[int, int]) -> int:
    """The values below a node with every alias written out, each node counted once; a RecursionError where it holds itself."""
    if id(node) not in known:
        known[id(node)] = 1 + sum(_num_values(child, known) for child in _children(node)) if _children(node) else 1
    return known[id(node)]


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, SequenceNode) else []


def _repeated_names(node: Node | None, seen: set[int]) -> tuple[str, int, int] | None:
    """
    The first name that a mapping gives twice, and the lines of both. YAML lets the last of equal names win, and the value
    of the first is lost without a word.
    """
    if id(node) in seen:
        return None
    seen.add(id(node))
    names: dict[str, int] = {}
    for key, _ in node.value if isinstance(node, MappingNode) else ():
        if isinstance(key, ScalarNode) and key.value != "<<":
            line = key.start_mark.line + 1
            if key.value in names:
                return key.value, names[key.value], line
            names[key.value] = line
    return next((found for child in _children(node) if (found := _repeated_names(child, seen))), None)
