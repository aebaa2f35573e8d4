"""The fenced blocks of README and docs/, and the commands of their shell blocks."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.tree import ROOT

DOCS = ROOT / "docs"
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, as named from the root, its language and its text."""

    page: str
    language: str
    text: str
    number: int

    def __str__(self) -> str:
        return f"{self.page}-{self.language}-{self.number}"


def blocks_of(path: Path) -> list[Block]:
    """The blocks of one page, in order."""
    name = str(path.relative_to(ROOT))
    found = FENCE.findall(path.read_text(encoding="utf-8"))
    return [Block(name, language, text, number) for number, (language, text) in enumerate(found, start=1)]


PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCKS = [block for path in PAGES for block in blocks_of(path)]


def commands_of(block: Block) -> list[list[str]]:
    """The words of each command of a shell block, without the variables set before it."""
    found, open_line = [], ""
    for line in block.text.replace("\\\n", " ").splitlines():
        try:
            words = words_of(open_line + line)
        except ValueError:  # a quotation that ends on a later line
            open_line += f"{line}\n"
            continue
        open_line = ""
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("|&;"):
                if command:
                    found.append(command)
                command = []
            elif command or not ASSIGNMENT.match(word):
                command.append(word)
    return found


def words_of(line: str) -> list[str]:
    """The words of a line, with |, & and ; as words of their own and without its comment."""
    words = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    words.whitespace_split = True
    return list(words)
