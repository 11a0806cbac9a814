"""Published curves as text files, and the picture."""

import numpy as np
import pytest
from PIL import Image

from boxsup_dist.data.images import decode_image
from boxsup_dist.errors import InputError
from boxsup_dist.proposals import curves, quality

HEADER = "ncands\tjac_class\tjac_instance\trec_at_0.5\trec_at_0.7\trec_at_0.85\n"


def test_published_curves_are_read_by_method(tmp_path):
    (tmp_path / "Set_A_MCG.txt").write_text(HEADER + "10\t0.1\t0.2\t0.3\t0.4\t0.5\n2e+01\t0.6\t0.7\t0.8\t0.9\t1\n\n")
    (tmp_path / "Set_A_GOP.txt").write_text(HEADER + "650\t.1\t.2\t.3\t.4\t.5\n")
    (tmp_path / "Set_B_GOP.txt").write_text("not read")
    found = curves.read_published(str(tmp_path), "Set_A")
    assert list(found) == ["GOP", "MCG"] and len(found["MCG"]) == 2
    assert found["MCG"][0] == {
        "num_candidates": 10, "mean_jaccard_class": 0.1, "mean_jaccard_instance": 0.2,
        "recall_at_0.5": 0.3, "recall_at_0.7": 0.4, "recall_at_0.85": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "match"),
    [("", "lacks columns.*jac_class"), ("a b\n1 2\n", "lacks columns"), (HEADER + "1 2 x 3 4 5", "not a table"),
     (HEADER + "1 2", "not a table")],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, text, match):
    (tmp_path / "A_MCG.txt").write_text(text)
    with pytest.raises(InputError, match=match):
        curves.read_published(str(tmp_path), "A")
    with pytest.raises(InputError, match="no published curves"):
        curves.read_published(str(tmp_path), "B")


def test_the_picture_shows_our_curve_with_and_without_published_ones(tmp_path):
    overlaps = quality.Overlaps(*np.full((3, 4, 2), 0.5))
    total = quality.tally(overlaps, np.arange(4), num_classes=5)
    ours = list(quality.metrics(total, np.array([30, 50]), [10, quality.ALL]).values())
    alone = curves.curves_figure("mine", ours, {})
    beside = curves.curves_figure("mine", ours, {"MCG": ours, "GOP": ours[:1]}, "Set_A")
    assert alone.startswith(b"\x89PNG") and alone != beside
    assert Image.fromarray(decode_image(beside)).size > (800, 500)


def test_every_published_set_is_read(shared):
    folder = str(shared / "published" / "proposals")
    for data_set, num_methods in (("COCO_val2014", 7), ("SBD_val", 7), ("pascal2012_val2012", 10)):
        found = curves.read_published(folder, data_set)
        assert len(found) == num_methods and len(found["MCG"]) > 40
