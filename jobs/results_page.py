"""Write docs/results.md from the measured tables in docs/results.

    python -m jobs.results_page

    FOLDER/index.json    sections of the page in order, each with its tables: file, title, text
    FOLDER/NAME.json     one table: `command`, `seeds`, `rows`; what jobs.reproduce writes, or rows of named cells

Run it after a table or the index changed: a test compares the page with what this command writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.reporting.text_table import interval_cells, to_markdown
from boxsup_dist.runs.command_line import run

HEAD = """# Results

<!-- Written by `python -m jobs.results_page` from docs/results. Edit the tables there, not this page. -->

Mean IoU is in percent, over all classes with background, accumulated over all images. *Label mIoU* is the mean IoU of
the label maps, pixels that training ignored as they were chosen, against the hidden masks of the training images.
*Spread* is the largest minus the smallest value over the seeds; a table of one seed has none. *95 %* and the
differences in brackets are intervals of a bootstrap over the images (`jobs.compare`); older tables have none. In the
commands, words in capitals stand for your own folders.
"""


@dataclass(frozen=True)
class Settings:
    """What to read and write."""

    folder: str = "docs/results"
    """Folder of the tables and of index.json."""
    out: str = "docs/results.md"
    """Page to write, in Markdown."""


def main(settings: Settings) -> None:
    """Write the page and print its name."""
    storage.write_bytes(settings.out, results_page(Path(settings.folder)).encode())
    print(settings.out)


def results_page(folder: Path) -> str:
    """The page in Markdown.

    Raises:
        InputError: A table is missing or damaged, or index.json does not name it.
    """
    try:
        return _page(folder)
    except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        problem = "the index or one of its tables has another form"
        raise InputError(problem, file=str(folder), value=f"{type(error).__name__}: {error}") from None


def _page(folder: Path) -> str:
    sections = _read(folder / "index.json")
    named = {table["file"] for section in sections for table in section["tables"]}
    unnamed = sorted(path.stem for path in folder.glob("*.json") if path.stem not in {*named, "index"})
    if unnamed:
        raise InputError(
            "tables without a section: name them here", file=str(folder / "index.json"), value=", ".join(unnamed)
        )
    parts = [HEAD]
    for section in sections:
        parts.append(f"## {section['section']}\n\n{section['text']}\n")
        parts += [_table(table, _read(folder / f"{table['file']}.json")) for table in section["tables"]]
    return "\n".join(parts)


def _read(path: Path) -> Any:
    return storage.read_json(str(path))


def _table(place: Mapping[str, str], table: Mapping[str, Any]) -> str:
    """Title, text, rows and origin of one table."""
    rows = _reproduced_rows(table["rows"]) if "runs" in table["rows"][0] else _plain_rows(table)
    lines = [f"### {place['title']}", "", *([place["text"], ""] if place["text"] else []), to_markdown(rows)]
    commands = [table["command"]] if isinstance(table["command"], str) else table["command"] or []
    if commands:
        lines += ["<!-- not run: the measurement takes minutes to hours -->", "```sh", *commands, "```", ""]
    else:
        lines += [f"Made by {table['made_by']}.", ""]
    seeds = table["seeds"]
    if seeds:
        lines.append(f"{'Seeds' if len(seeds) > 1 else 'Seed'}: {', '.join(map(str, seeds))}.")
        lines.append("")
    return "\n".join(lines)


def _plain_rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows as they are, but numbers of the columns in `digits` with that many decimals."""
    digits = table.get("digits", {})
    return [
        {
            name: f"{value:.{digits[name]}f}" if name in digits and value is not None else value
            for name, value in row.items()
        }
        for row in table["rows"]
    ]


def _reproduced_rows(rows: list[dict[str, Any]]) -> list[dict[str, str | None]]:
    """The rows of a table of jobs.reproduce with one decimal."""

    def number(value: float | None) -> str | None:
        return None if value is None else f"{value:.1f}"

    return [
        {
            "row": row["row"],
            "paper": number(row["paper"]),
            "mean IoU": number(row["mean_iou"]),
            **interval_cells(row),
            "spread": number(row["spread"]),
            "seeds": ", ".join(row["runs"]),
            "label mIoU": number(row["label_mean_iou"]),
        }
        for row in rows
    ]


if __name__ == "__main__":
    run(main, out_is_file=True)
