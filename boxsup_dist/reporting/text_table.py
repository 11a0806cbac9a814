"""Small tables of results: as text, Markdown and HTML."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from boxsup_dist.reporting.html import render


def format_value(value: Any) -> str:
    """The text of a cell: floats with four significant digits, integers as 12,000, None and nan as a dash."""
    if value is None or value != value:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def format_table(rows: Sequence[Mapping[str, Any]], title: str = "") -> str:
    """Rows as text under one header, with numbers on the right of their column.

    Args:
        rows: One mapping per row; columns come in the order in which the rows first name them. A missing key gives a
            dash. [] gives the title alone.
        title: A line above the table.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=Text(title) if title else None, title_justify="left")
    for column in columns:
        values = [row.get(column) for row in rows]
        numeric = all(v is None or (isinstance(v, (int, float)) and not isinstance(v, bool)) for v in values)
        table.add_column(Text(column), justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(format_value(row.get(column))) for column in columns))
    buffer = io.StringIO()
    Console(file=buffer, width=1000, color_system=None).print(table if columns else title)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def to_markdown(rows: Sequence[Mapping[str, Any]], title: str = "") -> str:
    """The same table in Markdown."""
    columns, cells = _cells(rows)
    lines = [columns, ["---"] * len(columns), *cells]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return (f"### {title}\n\n" if title else "") + text + "\n"


def to_html(rows: Sequence[Mapping[str, Any]], title: str = "") -> str:
    """The same table as one HTML page that needs nothing else."""
    columns, cells = _cells(rows)
    return render("table", title=title, columns=columns, rows=cells)


def interval_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """The intervals of a row as cells of a table; {} for a row without, such as one of an earlier version."""
    cells: dict[str, str] = {}
    if interval := row.get("interval"):
        cells["95 %"] = f"[{interval['low']:.1f}, {interval['high']:.1f}]"
    if found := row.get("difference"):
        cells[f"minus {found['from']}"] = f"{found['value']:+.1f} [{found['low']:.1f}, {found['high']:.1f}]"
    return cells


def _cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return columns, [[format_value(row.get(column)) for column in columns] for row in rows]
