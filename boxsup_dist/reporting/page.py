"""One self-contained HTML page of a run: no scripts, no links to the outside, readable in light and dark.

It draws whatever keys it finds; IoUs are in percent there, shares 0..1.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from boxsup_dist.reporting.figures import curves_figure, iou_bars_figure
from boxsup_dist.reporting.text_table import format_value

REPORT = "report.html"
MAX_FIGURES = 24  # embedded; the others are named

STYLE = """
:root { color-scheme: light dark; --line: #d5d9e0; --soft: #f4f5f8; --text: #1d2330; --faint: #667085;
  --warn: #fff4e0; --warn-line: #d9902b; }
@media (prefers-color-scheme: dark) { :root { --line: #3a4150; --soft: #20252f; --text: #e4e7ee; --faint: #9aa4b5;
  --warn: #3a2d15; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); margin: 2rem auto; max-width: 1080px;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .7rem; }
.faint, figcaption { color: var(--faint); font-size: .87rem; overflow-wrap: anywhere; }
.cards { display: flex; flex-wrap: wrap; gap: .7rem; margin-top: 1.2rem; }
.card { background: var(--soft); border-radius: 8px; padding: .6rem 1rem; min-width: 8.5rem; }
.card b { display: block; font-size: 1.45rem; font-weight: 600; }
.warning { background: var(--warn); border-left: 4px solid var(--warn-line); padding: .5rem .9rem; margin: .5rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; }
td.number, th.number { text-align: right; white-space: nowrap; }
figure { margin: 0 0 1.2rem; } img { max-width: 100%; background: #fff; border-radius: 6px; padding: 6px; }
summary { cursor: pointer; }
"""


def render_report(
    title: str,
    summary: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    figures: Sequence[tuple[str, bytes]],
    left_out: Sequence[str] = (),
    parts: Sequence[str] = (),
    confusion: bytes | None = None,
) -> str:
    """The page as text. `figures` are (file name, PNG bytes), `parts` are sub-directories that have a report.

    `confusion` is the picture of the confusion matrix.
    """
    last = history[-1] if history else {}
    body = [f"<h1>{escape(title.rstrip('/').rpartition('/')[2])}</h1><div class=faint>{escape(title)}</div>"]
    body += [_cards(summary, last), *_warnings(summary, history)]
    body += _section("Runs", [f'<p><a href="{quote(p)}/{REPORT}">{escape(p)}</a></p>' for p in parts])
    body += _section("Curves", [_image("Over the epochs", curves_figure(history))] if history else [])
    body += _section("Example images", [*(_image(*figure) for figure in figures), *_not_shown(left_out)])
    body += _section("IoU by class", _iou(summary.get("iou") or last.get("iou")))
    body += _section("Confusion", [_image("Share of each class's pixels", confusion)] if confusion else [])
    body += _section("Epochs", [_row_table(history)] if history else [])
    results = {key: value for key, value in summary.items() if key not in ("iou", "data", "warnings", "config")}
    body += _section("Results", [_key_table(results)] if results else [])
    body += _section("Data", [_key_table(summary["data"])] if summary.get("data") else [])
    settings = f"<details open><summary>{len(config)} groups and values</summary>{_key_table(config)}</details>"
    body += _section("Configuration", [settings] if config else [])
    head = f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{escape(title)}</title>"
    head += f'<meta name=viewport content="width=device-width"><style>{STYLE}</style></head>'
    return f"{head}<body>{''.join(body)}</body></html>\n"


def _section(title: str, content: Sequence[str]) -> list[str]:
    return [f"<h2>{escape(title)}</h2>", *content] if content else []


# Key of the summary or the last epoch, what it says, factor and unit.
CARDS = (
    ("mean_iou", "mean IoU", 1, " %"),
    ("label_mean_iou", "label mean IoU", 1, " %"),
    ("foreground_share", "predicted foreground", 100, " %"),
    ("num_images", "images evaluated", None, ""),
    ("epochs", "epochs", None, ""),
)


def _cards(summary: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    cards = []
    for key, name, factor, unit in CARDS:
        value = summary.get(key, last.get(key))
        # A mapping, as of the first and the last label maps or of several runs, shows each of its numbers.
        found = {**value} if isinstance(value, Mapping) else {"": value}
        for part, number in found.items():
            if isinstance(number, (int, float)):
                text = format_value(number) if factor is None else f"{factor * number:.1f}"
                cards.append(f"<div class=card><b>{text}{unit}</b>{escape(f'{name} {part}'.strip())}</div>")
    return f"<div class=cards>{''.join(cards)}</div>"


def _warnings(summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [*_texts(summary.get("warnings")), *(text for row in history for text in _texts(row.get("warnings")))]
    return [f"<div class=warning>{escape(text)}</div>" for text in dict.fromkeys(rows)]


def _texts(value: Any) -> Iterable[str]:
    return [str(v) for v in value] if isinstance(value, list) else [str(value)] if value else []


def _not_shown(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"<p class=faint>{len(names)} more in figures/: {escape(', '.join(names))}</p>"]


def _iou(iou: Any) -> list[str]:
    if not isinstance(iou, Mapping) or not iou:
        return []
    values = [value if isinstance(value, (int, float)) else None for value in iou.values()]
    return [_image("IoU in percent; the dashed line is the mean", iou_bars_figure(values, [str(name) for name in iou]))]


def _image(caption: str, png: bytes) -> str:
    text = escape(re.sub(r"[_/]+", " ", caption.removesuffix(".png")))
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _row_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Scalars of every row under one header; nested values are drawn elsewhere or in the file."""
    columns = list(dict.fromkeys(k for row in rows for k, v in row.items() if not isinstance(v, (Mapping, list))))
    header = "".join(f"<th class=number>{escape(column.replace('_', ' '))}</th>" for column in columns)
    lines = ("".join(_cell(row.get(column)) for column in columns) for row in rows)
    return f"<div class=scroll><table><tr>{header}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"


def _key_table(values: Mapping[str, Any]) -> str:
    lines = (f"<tr><th>{escape(key)}</th>{_cell(value)}</tr>" for key, value in _leaves(values))
    return f"<div class=scroll><table>{''.join(lines)}</table></div>"


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return f"<td class=number>{format_value(value)}</td>"
    return f"<td>{escape(format_value(value if not isinstance(value, (list, dict)) else json.dumps(value)))}</td>"
