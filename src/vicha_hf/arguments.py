"""Arguments of commands: read from YAML and the command line, and checked where they are made."""

import json
import math
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from .yaml_files import read_yaml_text, repeated_name


T = TypeVar("T")

# Words of YAML and the command line that say whether something is on.
_YES_OR_NO = ("true", "false", "yes", "no")
# What a type of Python is to a user.
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dict": "a mapping",
    "NoneType": "null",
}
# Options of every parser beside those of its dataclass.
_PARSER_OPTIONS = ("config", "help", "print_config")


def require(condition: bool, name: str, value: object, remedy: str) -> None:
    """Raise a `ValueError` that names the argument, its value and what to do about it."""
    if not condition:
        raise ValueError(f"{name}={value!r} is not possible: {remedy}")


def require_finite(arguments: object, prefix: str = "") -> None:
    """Raise a `ValueError` that names the first number of a dataclass, or of one inside it, that is infinite or NaN."""
    for item in fields(arguments):
        value, name = getattr(arguments, item.name), prefix + item.name
        if is_dataclass(value):
            require_finite(value, f"{name}.")
        numbers = value if isinstance(value, list | tuple) else [value]
        finite = all(math.isfinite(number) for number in numbers if isinstance(number, float))
        require(finite, name, value, "it must be finite.")


def one_line(text: object) -> str:
    """A message on one line, for stderr."""
    return " ".join(str(text).split())


class _NestedMistake(BaseException):
    """A mistake found by the parser of a dataclass inside another, on its way past jsonargparse to the outer parser."""

    def __init__(self, message: str, known: list[str]):
        super().__init__(message)
        self.message, self.known = message, known


class OptionParser(jsonargparse.ArgumentParser):
    """A parser that tells a mistake in one line on stderr and ends the process with status 2."""

    config_files: tuple[str, ...] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        known = [action.dest for action in self._actions]
        if not self.exit_on_error:
            raise _NestedMistake(message, known) from ex
        self._tell(message, known)

    def nested_error(self, mistake: _NestedMistake, words: Sequence[str]) -> NoReturn:
        """Tells a mistake inside a value by its full name, which is looked up among all `words`, `--name=value` each."""
        found = re.search(r"""(?:Parser key "|Option ')([\w.]+)""", mistake.message)
        if found is None:
            self._tell(mistake.message, mistake.known)
        value = re.search(r"(?:Got|Given) value: (.*)", mistake.message)
        full = _full_name(found[1], value and value[1], words)
        prefix = full.removesuffix(found[1])
        message = mistake.message[: found.start(1)] + full + mistake.message[found.end(1) :]
        self._tell(message, [prefix + name for name in mistake.known])

    def _tell(self, message: str, known: list[str]) -> NoReturn:
        if self.config_files:
            # The content was handed over instead of the name.
            message = message.replace('Parser key "config":', f"{', '.join(self.config_files)}:")
        message = re.sub(
            r"Group '([^']+)' does not accept option '([^']+)'", r"Option '\1.\2' is not accepted", message
        )
        if unknown := re.search(r"Option '([^']+)' is not accepted", message):
            where = f"{', '.join(self.config_files)}: " if self.config_files else ""
            message = f"{where}unknown option {unknown[1]}{did_you_mean(unknown[1], known)}"
        if own := re.search(r"^\s+- ([\w.]+=.* is not possible: .*)$", message, re.MULTILINE):
            # Of a dataclass that may be null: what the parser says around our own message tells a user nothing.
            message = own[1]
        message = re.sub(
            r'Parser key "([\w.]+)":\s(.*(?:Got|Given) value: (.*))', _impossible_value, message, flags=re.DOTALL
        )
        self.exit(2, f"{self.prog}: {one_line(message)} (all options: {self.prog} --help)\n")


def parse_arguments(
    arguments_class: type[T],
    argv: Sequence[str] | None = None,
    description: str = "",
    prog: str | None = None,
    positionals: Sequence[str] = (),
    usage: str | None = None,
) -> tuple[T, str]:
    """Read `--config FILE.yaml` and overrides such as `--learning_rate 1e-4 --data.hflip false`, in any order.

    The spelling is that of [`~transformers.HfArgumentParser`]: `--batch-size` is `--batch_size`, a boolean option alone
    is true, `--no_NAME` is false, and an option that takes a list takes several values.

    Args:
        arguments_class: a dataclass, usually derived from [`TrainingArguments`]; nested dataclasses become dotted names.
        argv: the command line; by default the process's own.
        description: shown by `--help`.
        prog: name of the program in messages; by default the script's.
        positionals: options that may also be given without their names, before all others. The last one takes the rest.
        usage: first line of `--help`; by default every option.

    Returns:
        The arguments, and the same as YAML that `--config` reads back.

    Raises:
        FileNotFoundError, ValueError: a configuration file that cannot be read; see [`read_yaml_text`].
        SystemExit: an unknown name, a value of the wrong type or an impossible value, explained on stderr.
    """
    parser = OptionParser(
        prog=prog,
        usage=usage,
        description=description,
        epilog="--debug shows the full trace of an error.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_class_arguments(arguments_class)
    words = _spelled_out(parser, arguments_class, argv, positionals)
    try:
        parsed = parser.parse_args(words)
    except _NestedMistake as mistake:
        parser.nested_error(mistake, words)
    try:
        made = parser.instantiate(parsed)
        arguments = arguments_class(**{item.name: made[item.name] for item in fields(arguments_class)})
    except ValueError as error:
        parser.error(str(error))
    return arguments, parser.dump(parsed, skip_unset=False)


def _impossible_value(found: re.Match) -> str:
    """The message of a value of the wrong type, in the words of the command line."""
    name, told, value = found.groups()
    choices = [
        choice
        for listed in re.findall(r"Expected a typing.Literal\[(.*?)\]", told)
        for choice in re.findall(r"'([^']*)'", listed)
    ]
    kinds = [_KINDS.get(kind, kind) for kind in re.findall(r"Expected a <class '(\w+)'>", told)]
    if length := re.search(r"Expected a tuple with (\d+) elements", told):
        kinds.insert(0, f"a list of {length[1]} values")
    if not choices + kinds:
        return found[0]
    wanted = [*([f"one of {', '.join(choices)}"] if choices else []), *dict.fromkeys(kinds)]
    return f"{name}={value!r} is not possible: give {' or '.join(wanted)}{did_you_mean(value, choices)}"


def _full_name(name: str, value: str | None, words: Sequence[str]) -> str:
    """`("r", "x", ["--model={lora: {r: x}}"])` -> "model.lora.r"; the name alone where it was not given."""
    given = []
    for word in words:
        option, _, text = word.removeprefix("--").partition("=")
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError:
            content = text
        given += _dotted(content, "" if option == "config" else option)
    same = [(full, leaf) for full, leaf in given if f".{full}".endswith(f".{name}")]
    return next((full for full, leaf in same if str(leaf) == value), same[0][0] if same else name)


def _dotted(content: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Values given inside a value of YAML, by dotted names."""
    if isinstance(content, Mapping):
        for key, inner in content.items():
            yield from _dotted(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, content


def _spelled_out(
    parser: OptionParser, arguments_class: type, argv: Sequence[str] | None, positionals: Sequence[str]
) -> list[str]:
    """The command line with one value for each option, `--name=value`."""
    words = list(sys.argv[1:] if argv is None else argv)
    first_option = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    spelled = _named(parser, arguments_class, words[:first_option], positionals)
    at = first_option
    while at < len(words):
        word = words[at]
        end = next((index for index in range(at + 1, len(words)) if _is_option(words[index])), len(words))
        values = words[at + 1 : end]
        at = end
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name.endswith("+"):
            spelled += [word, *values]
            continue
        name = name[2:].replace("-", "_")
        if equals:
            values = [value, *values]
        hint = _hint(arguments_class, name)
        if hint is None and _accepts(_hint(arguments_class, name.removeprefix("no_")), bool) and not values:
            name, values, hint = name.removeprefix("no_"), ["false"], bool
        if hint is None and name not in _PARSER_OPTIONS:
            parser.error(f"unknown option --{name}{did_you_mean(name, _names(arguments_class), '--')}")
        if _accepts(hint, bool) and not values:
            values = ["true"]
        if name == "config" and values:
            parser.config_files += (values[0],)
            values[0] = read_yaml_text(values[0])
        rest = values[1:]
        if hint is not None and not values and _only_list(hint):
            parser.error(f"--{name} takes one value or several; [] is none")
        if hint is not None and (rest or _only_list(hint)) and _accepts(hint, list, tuple):
            values, rest = [_as_list(values, hint)], []
        if rest:
            parser.error(f"--{name} takes one value, not {' '.join(values)}")
        spelled.append(f"--{name}" + (f"={values[0]}" if values else ""))
    for word in spelled:
        value = word.partition("=")[2] if word.startswith("--") else word
        if not word.startswith("--config=") and (twice := repeated_name(value)) is not None:
            parser.error(f"{word} gives {twice} twice; leave one out")
    # The parser lets the later one win, and an option means what it says wherever it stands.
    return sorted(spelled, key=lambda word: not word.startswith("--config="))


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """`"; did you mean NAME?"` with the nearest of the known names, or nothing where none is near."""
    nearest = get_close_matches(name, known, n=1)
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else ""


def _named(parser: OptionParser, arguments_class: type, words: list[str], positionals: Sequence[str]) -> list[str]:
    """`["model", "a.json"]` -> `["--model=model", "--data=a.json"]`."""
    if not words:
        return []
    if not positionals:
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    values = [words[index : index + 1] for index in range(len(positionals) - 1)] + [words[len(positionals) - 1 :]]
    spelled = []
    for name, given in zip(positionals, values, strict=True):
        if given:
            hint = _hint(arguments_class, name)
            spelled.append(f"--{name}={given[0] if len(given) == 1 else _as_list(given, hint)}")
    return spelled


def _is_option(word: str) -> bool:
    return word.startswith("-") and not word[1:2].isdigit() and word != "-"


def _as_list(values: list[str], hint: Any) -> str:
    """Values of the command line as one list in YAML; one that is a list already, or null, stays."""
    if len(values) == 1 and (values[0].startswith("[") or values[0] == "null"):
        return values[0]
    quoted = [json.dumps(value) if _accepts(hint, str) and not value.startswith("{") else value for value in values]
    return f"[{', '.join(quoted)}]"


def _parts(hint: Any) -> list[Any]:
    """The types that a hint allows, `int | None` -> `[int, NoneType]`."""
    return list(get_args(hint)) if get_origin(hint) in (types.UnionType, Union) else [hint]


def _accepts(hint: Any, *kinds: type) -> bool:
    """Whether a hint allows one of the kinds, itself or inside a list."""
    parts = _parts(hint)
    inner = [argument for part in parts if get_origin(part) in (list, tuple) for argument in get_args(part)]
    within = [] if list in kinds else [part for item in inner for part in _parts(item)]
    literal = [
        type(value) for part in parts + within if str(part).startswith("typing.Literal") for value in get_args(part)
    ]
    return any(get_origin(part) in kinds or part in kinds for part in parts + within + literal)


def _only_list(hint: Any) -> bool:
    return all(get_origin(part) in (list, tuple) or part is type(None) for part in _parts(hint))


def _hint(arguments_class: type, name: str) -> Any | None:
    """The type of the field with a dotted name; what stands below a dictionary may be anything. None without such a field."""
    first, _, rest = name.partition(".")
    if (hint := get_type_hints(arguments_class).get(first)) is None or not rest:
        return hint
    for part in _parts(hint):
        if is_dataclass(part):
            return _hint(part, rest)
        if part is dict or get_origin(part) is dict:
            return Any
    return None


def _names(arguments_class: type, prefix: str = "") -> list[str]:
    names = list(_PARSER_OPTIONS)
    for name, hint in get_type_hints(arguments_class).items():
        names.append(prefix + name)
        for part in _parts(hint):
            if is_dataclass(part):
                names += _names(part, f"{prefix}{name}.")
    return names
