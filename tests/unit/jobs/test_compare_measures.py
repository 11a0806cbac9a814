"""The rank correlations of measures with mean IoU, by hand."""

import pytest

from jobs.compare_measures import correlate


def test_correlations_over_all_checkpoints_and_within_a_run():
    truth, follows, turned = (1, 2, 3, 11, 12, 13), (1, 2, 3, 4, 5, 6), (3, 2, 1, 13, 12, 11)
    columns = {"mean_iou": truth, "follows": follows, "turned": turned, "flat": [0] * 6}
    rows = [
        {"run": "ab"[n > 2], "checkpoint": str(n), **{name: values[n] for name, values in columns.items()}}
        for n in range(6)
    ]
    follows_row, turned_row, flat_row = correlate(rows)
    assert follows_row == {
        "measure": "follows", "spearman": pytest.approx(1), "kendall": pytest.approx(1),
        "spearman_within": pytest.approx(1), "kendall_within": pytest.approx(1),
    }  # fmt: skip
    assert turned_row["spearman_within"] == turned_row["kendall_within"] == pytest.approx(-1)
    assert turned_row["kendall"] == pytest.approx((9 - 6) / 15) and turned_row["spearman"] == pytest.approx(
        1 - 6 * 16 / 210
    )
    assert set(flat_row.values()) == {"flat", None}
