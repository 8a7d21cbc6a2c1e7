"""Pages as a reader takes them: fenced blocks in order, commands, what is shown below them, figures."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LANGUAGES = {"bash", "console", "yaml", "python", "text", ""}
MARK = re.compile(r"<!-- (parsed|over): (.+) -->")
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?$")


@dataclass
class Block:
    """A fenced block; ``mark`` is the remark before it (``parsed`` with a reason, ``over`` with a recipe)."""

    language: str
    title: str | None
    text: str
    mark: tuple[str, str] | None
    line: int


@dataclass
class Command:
    """A command, and the lines a page shows below it."""

    words: list[str]
    shown: list[str]
    parsed_only: bool

    def __str__(self):
        return shlex.join(self.words)


def page_paths():
    """README, its translation, and every page that is written by hand."""
    pages = [path for path in sorted((ROOT / "docs").rglob("*.md")) if path.parent.name != "notebooks"]
    return [ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "CONTRIBUTING.md", *pages]


def blocks(text):
    """The blocks of a page in order; a fence that is not closed, or of another language, is an error."""
    found, inside, mark = [], None, None
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if inside is not None:
            if bare == "```":
                found.append(inside)
                inside, mark = None, None
            else:
                inside.text += line + "\n"
        elif bare.startswith("```"):
            language, title = FENCE.match(bare).groups()
            assert language in LANGUAGES, f"line {number}: a block of `{language}`"
            inside = Block(language, title, "", mark, number)
        elif MARK.fullmatch(bare):
            mark = MARK.fullmatch(bare).groups()
        elif bare:
            mark = None
    assert inside is None, f"the block of line {inside.line} is not closed"
    return found


def commands(block):
    """The commands of a block: all lines of ``bash``, those after ``$`` of ``console``."""
    found = []
    parsed_only = block.mark is not None and block.mark[0] == "parsed"
    for line in block.text.splitlines():
        if block.language == "console" and not line.startswith("$ "):
            if line.strip() and not line.startswith("> "):
                found[-1].shown.append(line)
            continue
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words:
            found.append(Command(words, [], parsed_only))
    return found


def normal(line):
    """A line with its figures made alike and its blanks made one."""
    return re.sub(r"\s+", " ", re.sub(r"[-+−]?\d[\d,.:]*", "#", line)).strip()


def figures(text):
    """Every number of a text of two digits or more, as written; code and links are left out."""
    prose = re.sub(r"`[^`\n]*`|\]\([^)]*\)", " ", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = re.findall(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?!\w|\.\d)", prose, flags=re.ASCII)
    return {number for number in found if len(number) > 1}


def table_rows(text):
    """The cells of every table row of a page."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]
