"""Examples of a run: the worst and the best images, by the right score."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxsup_dist.data.schema import VOC_CLASSES
from boxsup_dist.data.sources import Mixture, Source, make_units
from boxsup_dist.runs.examples import (
    MAX_UNITS,
    NUM_EACH,
    Example,
    choose_examples,
    draw_examples,
    epochs_to_show,
    score_examples,
    units_to_score,
)
from tests.distributed import tiny


def test_the_worst_and_the_best_images_are_chosen_once_each() -> None:
    scored = [Example(0, f"i{n}", score) for n, score in enumerate([0.5, 0.1, 0.9, 0.3, 0.8, 0.2, 0.7])]
    chosen = [(e.kind, e.image_id) for e in choose_examples([*scored, Example(1, "unscored")])]
    assert chosen == [
        ("worst-1", "i1"), ("worst-2", "i5"), ("worst-3", "i3"), ("best-1", "i2"), ("best-2", "i4"), ("best-3", "i6"),
    ]  # fmt: skip
    few = [(e.kind, e.image_id) for e in choose_examples(scored[:3])]
    assert few == [("worst-1", "i1"), ("worst-2", "i0"), ("best-1", "i2")]


def test_images_without_a_score_are_plain_examples() -> None:
    chosen = choose_examples([Example(0, f"i{n}") for n in range(9)])
    assert [e.kind for e in chosen] == ["example"] * 2 * NUM_EACH
    assert choose_examples([]) == []


def test_units_are_spread_over_the_run() -> None:
    assert units_to_score(3) == [0, 1, 2]
    found = units_to_score(1000)
    assert len(found) == MAX_UNITS and (found[0], found[-1]) == (0, 999)
    assert epochs_to_show(10, 3) == [1, 6, 10] or epochs_to_show(10, 3) == [1, 5, 10]


@pytest.mark.parametrize("seen", [True, False])
def test_ground_truth_is_scored_by_only_where_the_run_may_see_it(tmp_path: Path, seen: bool) -> None:
    records = [tiny.make_record(n, "train") for n in range(2)]
    if not seen:
        records = [tiny.make_record(n, "train", b"poison") for n in range(2)]
    mixture = Mixture(make_units([Source(tiny.write_records(tmp_path / "r", records), "rectangles")]),
                      tiny.ASSIGNMENT, tiny.AUGMENT, 0)  # fmt: skip
    network = tiny.build_network().eval()
    options = {"mixture": mixture, "run_dir": str(tmp_path), "num_epochs": 1, "class_names": VOC_CLASSES}
    scored = score_examples(network, 0, **options, show_ground_truth=seen)
    assert [e.image_id for e in scored] == [r.image_id for r in records]
    assert all((e.score is not None and "IoU" in e.text) == seen for e in scored)
    ((name, png),) = draw_examples(network, scored[0]._replace(kind="best-1"), **options, show_ground_truth=seen)
    assert name.startswith("best-1-tiny") and png.startswith(b"\x89PNG")


def test_an_image_with_damaged_ground_truth_is_no_example(tmp_path) -> None:
    records = [tiny.make_record(0, "train", b"poison"), tiny.make_record(1, "train")]
    mixture = Mixture(make_units([Source(tiny.write_records(tmp_path / "r", records), "rectangles")]),
                      tiny.ASSIGNMENT, tiny.AUGMENT, 0)  # fmt: skip
    options = {"mixture": mixture, "run_dir": str(tmp_path), "num_epochs": 1, "class_names": VOC_CLASSES}
    scored = score_examples(tiny.build_network().eval(), 0, **options, show_ground_truth=True)
    assert [e.image_id for e in scored] == [records[1].image_id]
