"""The synthetic data set: true to its geometry, a function of the seed, fair to rectangles, whole or written again."""

from pathlib import Path

import numpy as np
import pytest

from boxsup_dist.data.images import decode_png
from boxsup_dist.data.palette import voc_palette
from boxsup_dist.data.schema import IGNORE_INDEX, VOC_CLASSES
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.records import synthetic, voc
from boxsup_dist.records.synthetic_scene import FILL_RANGE, OBJECTS, fill_ratio, tight_box

NUM_TRAIN, NUM_VAL = 24, 6


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    return synthetic.write_synthetic(str(tmp_path_factory.mktemp("synthetic")), NUM_TRAIN, NUM_VAL)


@pytest.fixture(scope="module")
def records(root):
    return [voc.read_record(root, i, "train", source="synthetic") for i in voc.read_split(root, "train")]


@pytest.fixture(scope="module")
def scenes():
    return [synthetic.scene_of(0, "train", index) for index in range(100)]


def test_the_reader_gives_back_the_scene(records, scenes):
    assert len(records) == NUM_TRAIN
    for record, scene in zip(records, scenes, strict=False):
        assert [VOC_CLASSES[c] for c in record.class_ids] == scene.names
        boxes = [tight_box(scene.instances == k + 1) for k in range(len(scene.names))]
        assert record.boxes_xyxy.tolist() == [list(box) for box in boxes]
        assert (decode_png(record.gt_label_map) == synthetic.label_map_of(scene)).all()


def test_every_class_pixel_lies_in_a_box_of_its_class_and_touches_each_side(records):
    for record in records:
        label_map = decode_png(record.gt_label_map)
        for class_id in set(np.unique(label_map)) - {0, IGNORE_INDEX}:
            inside = np.zeros(label_map.shape, bool)
            for x0, y0, x1, y1 in record.boxes_xyxy[record.class_ids == class_id].astype(int):
                inside[y0:y1, x0:x1] = True
            assert not ((label_map == class_id) & ~inside).any()
        assert record.boxes_xyxy.min() >= 0
        assert (record.boxes_xyxy[:, 2:] <= (record.width, record.height)).all()


def test_void_lies_just_along_the_outlines(records):
    for record in records:
        label_map = decode_png(record.gt_label_map)
        void = label_map == IGNORE_INDEX
        assert 0.005 < void.mean() < 0.25
        # A band two pixels wide: no void pixel has only void within two pixels around it.
        windows = np.lib.stride_tricks.sliding_window_view(void, (5, 5))
        assert windows.all(axis=(2, 3)).mean() < 0.002


def test_images_have_the_sizes_for_quick_training_and_all_classes_appear(scenes):
    sides = {max(scene.instances.shape) for scene in scenes}
    assert min(sides) >= 160 and max(sides) <= 240 and len(sides) > 20
    counts = {name: sum(scene.names.count(name) for scene in scenes) for name in OBJECTS}
    assert min(counts.values()) >= 15, counts
    assert all(1 <= len(scene.names) <= 4 for scene in scenes)


def test_rectangles_are_a_fair_baseline(scenes):
    """Objects fill their boxes as VOC's do: mean 0.57, 10th to 90th percentile 0.33 to 0.81 over its train set."""
    fills = [fill_ratio(s.instances == k + 1) for s in scenes for k in range(len(s.names))]
    assert 0.5 < np.mean(fills) < 0.6
    assert np.percentile(fills, 10) > 0.33 and np.percentile(fills, 90) < FILL_RANGE[1]
    assert min(v for s in scenes for v in s.visible) >= 0.55


def test_no_class_is_known_by_its_mean_colour(scenes):
    """The best guess from an object's mean colour alone (nearest neighbour) is wrong at least 15 % of the time."""
    colours, names = [], []
    for scene in scenes:
        for index, name in enumerate(scene.names):
            colours.append(scene.image[scene.instances == index + 1].mean(axis=0))
            names.append(name)
    distances = np.linalg.norm(np.array(colours)[:, None] - np.array(colours)[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    right = np.array(names)[distances.argmin(axis=1)] == np.array(names)
    assert 1 / len(OBJECTS) < right.mean() < 0.85


def _files(root: str) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(Path(root).rglob("*")) if f.is_file()}


def test_an_image_depends_on_seed_split_and_index_alone(root, tmp_path):
    smaller = synthetic.write_synthetic(str(tmp_path / "small"), 3, 2)
    whole, part = _files(root), _files(smaller)
    images = [name for name in part if name.startswith(("JPEGImages", "Annotations", "SegmentationClass"))]
    assert len(images) == 3 * 5
    assert all(whole[name] == part[name] for name in images)
    assert len({data for name, data in whole.items() if name.startswith("JPEG")}) == NUM_TRAIN + NUM_VAL
    other = _files(synthetic.write_synthetic(str(tmp_path / "other"), 3, 2, seed=1))
    assert all(other[name] != part[name] for name in images if name.startswith("JPEG"))


def test_a_second_call_does_nothing_and_a_half_or_other_set_is_replaced(tmp_path):
    root = synthetic.write_synthetic(str(tmp_path), 2, 1)
    before = _files(root)
    written: list[int] = []
    synthetic.write_synthetic(str(tmp_path), 2, 1, on_image=lambda: written.append(1))
    assert written == []

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.write_synthetic(str(tmp_path), 3, 1, on_image=killed)
    assert not (Path(root) / synthetic.MARKER).exists()
    synthetic.write_synthetic(str(tmp_path), 2, 1)
    assert _files(root) == before


def test_foreign_folders_and_empty_splits_are_refused(tmp_path):
    (tmp_path / "VOC2012" / "JPEGImages").mkdir(parents=True)
    with pytest.raises(InputError, match="another data set"):
        synthetic.write_synthetic(str(tmp_path), 2, 1)
    with pytest.raises(SettingError, match="num_val"):
        synthetic.write_synthetic(str(tmp_path / "new"), 2, 0)


def test_the_palette_is_the_devkits():
    palette = voc_palette()
    known = {0: (0, 0, 0), 1: (128, 0, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {i: tuple(int(v) for v in palette[i]) for i in known} == known
    assert len(np.unique(palette, axis=0)) == 256
