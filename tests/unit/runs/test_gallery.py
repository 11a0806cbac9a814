"""The gallery: which images, what is drawn of them, and what the page and the list of boxes are given."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from boxsup_dist.data.palette import class_palette
from boxsup_dist.data.schema import IGNORE_INDEX, VOC_CLASSES
from boxsup_dist.data.sources import Mixture, Source, make_units
from boxsup_dist.errors import InputError
from boxsup_dist.reporting import gallery as pictures
from boxsup_dist.runs import gallery, gallery_page
from tests.distributed import tiny


@pytest.fixture
def records():
    return [tiny.make_record(n, "train") for n in range(6)]


def job_of(tmp_path, records, number=1, show=True):
    table = tiny.write_records(tmp_path / f"records-{number}", records)
    mixture = Mixture(make_units([Source(table, "rectangles")]), tiny.ASSIGNMENT, tiny.AUGMENT, 0)
    val = tiny.write_records(tmp_path / f"val-{number}", [tiny.make_record(0, "val")])
    return gallery.Job(str(tmp_path / "out"), number, str(tmp_path), mixture, val, (), VOC_CLASSES, show)


def draw(job, most=100):
    network = tiny.build_network().eval()
    pieces = gallery.choose_pieces(job.mixture, job.val_records, most)
    return [drawn for piece in pieces for drawn in gallery.draw_piece(network, piece, job=job)]


def test_all_images_are_shown_or_some_spread_evenly(tmp_path, records):
    job = job_of(tmp_path, records)
    rows = [(piece.part, piece.unit, piece.rows) for piece in gallery.choose_pieces(job.mixture, job.val_records, 100)]
    assert rows == [("training", 0, (0, 1, 2, 3)), ("training", 1, (0, 1)), ("validation", 0, (0,))]
    few = gallery.choose_pieces(job.mixture, job.val_records, 2)
    assert [(piece.part, piece.unit, piece.rows) for piece in few] == [
        ("training", 0, (0,)), ("training", 1, (1,)), ("validation", 0, (0,)),
    ]  # fmt: skip


def test_a_strip_holds_every_label_map_of_the_image(tmp_path, records):
    images = draw(job_of(tmp_path, records))
    assert [each.image_id for each in images] == [f"tiny/train_{n:02d}" for n in range(6)] + ["tiny/val_00"]
    first, last = images[0], images[-1]
    assert first.view.layers == ["labels", "prediction", "truth"]
    assert last.view.layers == ["prediction", "truth"] and last.suspicions == []
    with Image.open(tmp_path / "out" / "photos" / first.file) as photo:
        width, height = photo.size
    with Image.open(tmp_path / "out" / "layers-1" / first.file) as strip:
        assert strip.size == (width, 3 * (height + pictures.GAP_PX))
        labels = np.asarray(strip.convert("RGBA"))[:height]
    box, class_id = records[0].boxes_xyxy[0].astype(int), records[0].class_ids[0]
    assert tuple(labels[box[1], box[0]]) == (*class_palette(VOC_CLASSES)[class_id], pictures.EDGE_ALPHA)
    assert len(first.suspicions) >= len(records[0].class_ids)


def test_a_damaged_image_is_left_out_and_masks_that_the_run_may_not_see_are_not_read(tmp_path, records):
    records[1] = type(records[1])(**{**vars(records[1]), "image": b"no image"})
    records = [type(r)(**{**vars(r), "gt_label_map": tiny.POISON}) for r in records]
    job = job_of(tmp_path, records, show=False)
    images = [each for each in draw(job) if each.part == "training"]
    assert [each.image_id[-2:] for each in images] == ["00", "02", "03", "04", "05"]
    assert all("truth" not in each.view.layers and each.view.iou is None for each in images)


def test_the_page_has_both_runs_and_the_list_has_every_box(tmp_path, records):
    images = draw(job_of(tmp_path, records))
    others = draw(job_of(tmp_path, records[:3], number=2))
    ranked = gallery_page.rank(images)
    data = gallery_page.page_data(
        ["a", "b"],
        images,
        others,
        ranked,
        class_names=VOC_CLASSES,
        names={"tiny/train_00": "0.jpg"},
        mlflow_run_id=None,
    )
    page = pictures.render_gallery("a </script> b", ["7 images"], ["<b>doubt</b>"], data)
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None and json.loads(found[1]) == json.loads(json.dumps({**data, "gap": pictures.GAP_PX}))
    assert "a &lt;/script&gt; b" in page and "&lt;b&gt;doubt" in page
    assert [each["runs"][1] is None for each in data["images"]] == [False] * 3 + [True] * 3 + [False]
    rows = list(
        csv.DictReader(io.StringIO(gallery_page.boxes_csv(ranked, VOC_CLASSES, {"tiny/train_00": "0.jpg"}).decode()))
    )
    boxes = [(row["image_id"], int(row["box_index"])) for row in rows if row["box_index"]]
    assert sorted(boxes) == sorted((r.image_id, k) for r in records for k in range(len(r.class_ids)) if not r.crowd[k])
    assert [float(row["doubt"]) for row in rows] == sorted((float(row["doubt"]) for row in rows), reverse=True)
    assert {row["file_name"] for row in rows if row["image_id"] == "tiny/train_00"} == {"0.jpg"}
    unit = {piece.unit: piece for piece in gallery.choose_pieces(job_of(tmp_path, records, 3).mixture, None, 9)}
    by_unit = {n: {k: each for k, each in enumerate(ranked) if each.drawn.unit == n} for n in unit}
    for piece in unit.values():
        gallery.draw_crops(tiny.build_network(), piece, job=job_of(tmp_path, records, 3), crops=by_unit)
    assert len(list((tmp_path / "out" / "boxes").iterdir())) == len(ranked)


def test_runs_of_other_classes_are_refused():
    with pytest.raises(InputError, match="different classes: compare runs of the classes of A"):
        gallery_page.check_same_classes("B", ("background", "x"), ("background", "y"), "A")


def test_the_picture_of_a_box_shows_its_surroundings_and_stays_in_the_image():
    assert pictures.crop_window((50, 50, 70, 60), 200, 300) == (38, 38, 82, 72)
    assert pictures.crop_window((0, 0, 10, 10), 12, 300) == (0, 0, 16, 12)
    assert pictures.shown_size(1000, 500) == (480, 240) and pictures.shown_size(20, 30) == (20, 30)
    image = np.zeros((200, 300, 3), np.uint8)
    with Image.open(io.BytesIO(pictures.encode_crop(image, (38, 38, 82, 72)))) as crop:
        assert crop.size == (132, 102)  # three times


def test_ignored_pixels_are_a_veil_and_background_shows_the_photo():
    label_map = np.zeros((20, 20), np.uint8)
    label_map[:5], label_map[10:] = IGNORE_INDEX, 3
    with Image.open(io.BytesIO(pictures.encode_layers([label_map], class_palette(), (20, 20)))) as strip:
        alpha = np.asarray(strip)[:20, 10, 3]
    assert set(alpha[:5]) == {pictures.IGNORE_ALPHA} and set(alpha[5:10]) == {0}
    assert set(alpha[10:12]) == {pictures.EDGE_ALPHA} and set(alpha[13:]) == {pictures.FILL_ALPHA}
