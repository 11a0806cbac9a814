"""The report: complete, self-contained, and safe with any text."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxsup_dist.errors import InputError
from boxsup_dist.evaluation.confusion import write_confusion
from boxsup_dist.reporting.figures import iou_bars_figure
from boxsup_dist.reporting.page import MAX_FIGURES, MAX_SIMILAR, render_report
from boxsup_dist.reporting.text_table import format_table, format_value
from boxsup_dist.reporting.words import METRICS
from boxsup_dist.runs.report import write_report

NASTY = "<script>alert('x')</script> & \"quotes\""


class Page(HTMLParser):
    """Tags, links and text of a page; fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def write_run(folder: Path, **files: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "box"
    write_run(
        folder,
        summary={
            "mean_iou": 58.34,
            "label_mean_iou": {"first": 61.04, "last": 70.2},
            "iou": {"background": 90.0, "cat": None, NASTY: 10.0},
            "warnings": [NASTY],
            "data": {"records": {"uri": "/data/r", "counts": {"skipped": 2}}},
            "seconds": {"train": 12.5},
        },
        config={"lr": 0.001, "model": {"backbone": "lite0", "empty": {}}, "list": [1, 2], NASTY: NASTY},
    )
    rows = [
        {
            "epoch": e + 1,
            "train_loss": 2.0 - e,
            "mean_iou": 10.0 * e,
            "foreground_share": 0.1 * e,
            "seconds": {"train": 2.0},
        }
        for e in range(3)
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "figures").mkdir()
    (folder / "figures" / "labels_a.png").write_bytes(iou_bars_figure([0.5], ["x"]))
    return folder


def test_the_page_holds_all_and_needs_nothing(run: Path) -> None:
    target = write_report(str(run))
    assert target == str(run / "report.html")
    page = Page(Path(target).read_text())
    for text in (
        "58.3 %",
        "61.0 %",
        "mean IoU of the label maps: last epoch",
        "20.0 %",
        "/data/r",
        "data",
        "lite0",
        "model.backbone",
        "labels a",
        "seconds.train",
    ):
        assert text in page.text
    assert page.tags.count("img") == 4
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)


def test_the_confusion_matrix_is_drawn_where_the_run_kept_it(run: Path) -> None:
    write_confusion(str(run / "confusion.json"), np.array([[5, 1], [0, 3]]), ("background", "cat"))
    page = Page(Path(write_report(str(run))).read_text())
    assert "Which classes are confused" in page.text
    assert page.tags.count("img") == 5


def test_words_not_keys(run: Path) -> None:
    """A stranger reads what a number is, with epochs from 1 and shares in percent."""
    page = Page(Path(write_report(str(run))).read_text())
    for text in ("training loss", "predicted foreground (%)", "mean IoU on the validation images (%)"):
        assert text in page.text
    assert "train loss" not in page.text and "foreground share" not in page.text


def render(**values: Any) -> Page:
    return Page(render_report("/runs/box", **{"summary": {}, "history": [], "config": {}, **values}))


def test_training_images_are_not_called_evaluated() -> None:
    page = render(summary={"num_images": 420}, history=[{"epoch": 1, "num_images": 60}])
    assert "420 training images · 60 validation images" in page.text and "evaluated" not in page.text


def test_a_warning_is_shown_once_with_its_epochs() -> None:
    rows = [{"epoch": e, "warnings": ["same", f"only {e}"] if e == 4 else ["same"]} for e in (2, 3, 4, 6)]
    page = render(history=rows)
    assert "epochs 2-4, 6: same" in page.text and "epoch 4: only 4" in page.text
    assert page.text.count("same") == 1


def test_warnings_with_the_same_advice_share_a_box() -> None:
    rows = [{"epoch": 1, "warnings": ["no objects: train longer", "all background: train longer", "other: look"]}]
    page = render(history=rows)
    assert page.text.count("What to do:") == 2 and page.text.count("train longer") == 1
    assert page.text.index("no objects") < page.text.index("all background") < page.text.index("train longer")


def test_many_records_left_out_are_counted() -> None:
    page = render(history=[{"epoch": 1, "warnings": [f"left out: image {i}: damaged" for i in range(MAX_SIMILAR + 3)]}])
    assert page.text.count("damaged") == MAX_SIMILAR and "and 3 more" in page.text
    assert "What to do" not in page.text


def test_quality_comes_first_and_internals_are_folded() -> None:
    rows = [{"epoch": e, "mean_iou": 10.0 * e, "images_per_s": 5.0 + e, "mean_overlap_cost": 1.0 / e} for e in (1, 2)]
    page = render(summary={"time": {"wall_s": 9.0, "seconds": {"steps": 9.0}}}, history=rows, config={"lr": 1})
    titles = ("Quality over", "Speed and goodput", "All metrics", "Costs and times", "Configuration: 1 value")
    assert [page.text.index(text) for text in titles] == sorted(page.text.index(text) for text in titles)
    assert page.tags.count("details") == 3 and "open" not in page.attributes


def test_no_chart_without_a_curve() -> None:
    """One epoch is a point, and equal values are a line that says nothing: their numbers are in cards and tables."""
    point = [{"epoch": 1, "train_loss": 1.0, "mean_iou": 50.0}]
    for rows in (point, [{**point[0], "epoch": e, "images_per_s": 5.0} for e in (1, 2, 3)]):
        page = render(history=rows)
        assert "img" not in page.tags and "50.0 %mean IoU on the validation images" in page.text


def test_measures_that_only_words_knows_are_shown_as_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "corner_recall", ("recall of the given boxes (%)", 100))
    page = render(history=[{"epoch": e, "corner_recall": 0.2 * e} for e in (1, 2)])
    assert "40.0 %recall of the given boxes" in page.text
    assert "Quality over the epochs" in page.text and "Costs and times" not in page.text


def test_worst_images_come_before_the_best() -> None:
    png = iou_bars_figure([0.5], ["x"])
    page = render(figures=[("best-1-a_b.png", png), ("other.png", png), ("worst-1-c.png", png)])
    places = [page.text.index(text) for text in ("Worst images", "Best images", "a b", "Example images", "other")]
    assert places == sorted(places)


def test_text_is_escaped(run: Path) -> None:
    page = Page(Path(write_report(str(run))).read_text())
    assert "script" not in page.tags
    assert page.text.count(NASTY) >= 3


@pytest.mark.parametrize("kept", ["summary.json", "history.jsonl", "config.json", "figures/labels_a.png"])
def test_any_one_file_is_enough(run: Path, kept: str) -> None:
    for name in ("summary.json", "history.jsonl", "config.json", "figures/labels_a.png"):
        if name != kept:
            (run / name).unlink()
    Page(Path(write_report(str(run))).read_text())


def test_an_empty_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to report"):
        write_report(str(tmp_path))
    (tmp_path / "summary.json").write_text("[1]")
    with pytest.raises(InputError, match="not a JSON object"):
        write_report(str(tmp_path))


def test_many_figures_are_named_not_embedded(run: Path) -> None:
    png = (run / "figures" / "labels_a.png").read_bytes()
    for index in range(MAX_FIGURES + 3):
        (run / "figures" / f"x_{index:03d}.png").write_bytes(png)
    page = Page(Path(write_report(str(run))).read_text())
    assert page.tags.count("img") == MAX_FIGURES + 3
    assert "4 more in figures/" in page.text


def test_a_report_of_runs_links_to_theirs(run: Path) -> None:
    write_report(str(run))
    write_run(run.parent, summary={"mean_iou": {"mask": 60.0, "box": 58.0}})
    page = Page(Path(write_report(str(run.parent))).read_text())
    assert page.sources == ["box/report.html"]
    assert "mean_iou.mask" in page.text
    assert "mean IoU: mask" in page.text


def test_text_table_lines_up_and_keeps_every_value() -> None:
    rows: list[dict[str, Any]] = [
        {"run": "mask [bold]", "mean_iou": 0.58344, "images": 12000},
        {"run": "box", "mean_iou": None, "more": True},
    ]
    lines = format_table(rows, "Results").splitlines()
    assert lines[0] == "Results"
    assert len({len(line) for line in lines[1:]}) == 1
    text = "\n".join(lines)
    for expected in ("mask [bold]", "0.5834", "12,000", " - ", "True", "more"):
        assert expected in text
    assert format_table([], "Nothing") == "Nothing"


def test_long_rows_are_not_cut() -> None:
    rows = [{f"column_{i}": "x" * 30 for i in range(9)}]
    assert format_table(rows).count("x" * 30) == 9


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (float("nan"), "-"), (1234567, "1,234,567"), (0.123456, "0.1235"), (True, "True"), ("a", "a"),
     (np.float64(0.5), "0.5"), (1e-9, "1e-09")],
)  # fmt: skip
def test_cells(value: Any, text: str) -> None:
    assert format_value(value) == text


def test_where_the_time_went(tmp_path: Path) -> None:
    time = {
        "wall_s": 200.0,
        "goodput": 0.75,
        "seconds": {"steps": 150.0, "redone": 20.0, "start": 30.0},
        "redone_steps": 3,
        "restarts": [{"reason": f"train worker 1 was lost {NASTY}", "seconds": 20.0, "redone_steps": 3}],
    }
    write_run(tmp_path, summary={"mean_iou": 50.0, "time": time})
    text = Page(Path(write_report(str(tmp_path))).read_text()).text
    place = [text.index(part) for part in ("training75.0%", "starting15.0%", "training again after failures10.0%")]
    assert place == sorted(place) and "goodput: share of steps that count0.75" in text
    assert f"started again after 20s, steps trained again: 3train worker 1 was lost {NASTY}" in text
    assert "redone_steps" not in text, "the table stands for the values of the summary"
