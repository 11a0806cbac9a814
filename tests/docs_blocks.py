"""Command blocks of the README and of the pages, in the order in which they are read.

A block of commands is fenced as `sh`, one of Python as `python`. The line before it is an HTML comment that the
rendered page does not show: `<!-- run -->`, or `<!-- not run: REASON -->`.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"<!-- (run|not run: \S.*) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block: where it is, the line before it, and what it holds."""

    page: str
    line: int
    before: str
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Words of each command; lines that end with a backslash are joined, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def pages() -> list[Path]:
    """README.md, the pages in the order of the navigation, CONTRIBUTING.md."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    files = [ROOT / "docs" / file for entry in nav for file in entry.values()]
    return [ROOT / "README.md", *files, ROOT / "CONTRIBUTING.md"]


def blocks_of(page: Path) -> list[Block]:
    """Fenced blocks of a page. A fence must be closed."""
    name, lines = str(page.relative_to(ROOT)), page.read_text().splitlines()
    fences = [number for number, line in enumerate(lines) if line.startswith("```")]
    assert len(fences) % 2 == 0, f"{name}: a fence is not closed"
    return [
        Block(name, first + 1, lines[first - 1], lines[first][3:].strip(), "\n".join(lines[first + 1 : last]))
        for first, last in zip(fences[::2], fences[1::2], strict=True)
    ]


def all_blocks() -> list[Block]:
    """Blocks of all pages in reading order."""
    return [block for page in pages() for block in blocks_of(page)]
