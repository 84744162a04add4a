"""Code blocks of Markdown files."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Block:
    """A fenced block: `language` as written after the fence, and where it starts."""

    file: Path
    line: int
    language: str
    code: str

    @property
    def name(self) -> str:
        return f"{self.file.name}:{self.line}"


def read_blocks(file: Path) -> list[Block]:
    text = file.read_text(encoding="utf-8")
    blocks = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        blocks.append(Block(file, text[: match.start()].count("\n") + 1, match[1], match[2]))
    return blocks


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block, split into words; continued lines joined, comments dropped."""
    joined = re.sub(r"\\\n\s*", " ", block.code)
    split = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [words for words in split if words]
