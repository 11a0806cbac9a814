"""Files written in each published format decode to exactly the masks that they describe, drawn the slow way."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from boxsup_dist.data import rle
from boxsup_dist.data.schema import Proposals, proposals_from_table, proposals_to_table
from boxsup_dist.errors import InputError, RecordError, SettingError, StorageError
from boxsup_dist.io import storage
from boxsup_dist.proposals import encoding
from boxsup_dist.proposals.imported import import_proposals
from boxsup_dist.proposals.methods import METHODS, identity
from boxsup_dist.proposals.settings import ImportedSettings
from tests.mat73 import savemat73
from tests.random_proposals import random_superpixels
from tests.unit.proposals.pictures import drawn

HEIGHT, WIDTH = 23, 37
IMAGE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def savemat5(file: Path, variables: dict[str, Any]) -> None:
    """As MATLAB's save -v7 does: lists become cells."""
    scipy.io.savemat(file, {name: _cells(value) for name, value in variables.items()}, do_compression=True)


def _cells(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _cells(part) for name, part in value.items()}
    if not isinstance(value, list):
        return value
    cell = np.empty((len(value), 1), object)
    for i, part in enumerate(value):
        cell[i, 0] = _cells(part)
    return cell


@pytest.fixture(params=[savemat5, savemat73], ids=["v5", "v7.3"])
def savemat(request, tmp_path):
    """Saves variables as img.mat of one MATLAB version."""
    return lambda variables: request.param(tmp_path / "img.mat", variables)


def load(folder: Path, kind: str, **settings) -> Proposals:
    return import_proposals(IMAGE, ImportedSettings(str(folder), kind, **settings), image_id="voc2012/img")


def superpixel_map(rng, count: int = 15) -> np.ndarray:
    """Ids 1..count, some of which own no pixel."""
    superpixels = random_superpixels(rng, HEIGHT, WIDTH, count).astype(np.int64) + 1
    superpixels[np.isin(superpixels, (2, 7))] = 9
    assert len(np.unique(superpixels)) < count
    return superpixels


def label_lists(rng, superpixels: np.ndarray, num_proposals: int = 12) -> list[np.ndarray]:
    """1 x k rows of ids, unsorted; some ids own no pixel."""
    largest = superpixels.max()
    rows = [rng.choice(largest, rng.integers(1, 6), replace=False)[None] + 1 for _ in range(num_proposals)]
    rows[3] = np.array([[9, 2, 7, 9]])  # absent and repeated ids
    return rows


def slow_masks(superpixels: np.ndarray, lists: list[np.ndarray]) -> np.ndarray:
    """mask_j = ismember(superpixels, labels{j}), pixel by pixel, bool (P, H, W)."""
    masks = np.zeros((len(lists), *superpixels.shape), bool)
    for j, ids in enumerate(lists):
        wanted = set(np.ravel(ids).tolist())
        for y in range(superpixels.shape[0]):
            for x in range(superpixels.shape[1]):
                masks[j, y, x] = int(superpixels[y, x]) in wanted
    return masks


def check(found: Proposals, masks: np.ndarray) -> None:
    """The candidates are exactly these masks, in the one encoding."""
    assert found.image_id == "voc2012/img" and found.superpixels.dtype == np.uint16
    assert np.unique(found.superpixels).tolist() == list(range(found.num_superpixels)), "no gap, no unused id"
    assert (drawn(found) == masks).all() and len(found) == len(masks)
    for j, mask in enumerate(masks):
        members = found.members(j)
        assert (np.diff(members.astype(int)) > 0).all() and len(members)
        rows, columns = np.nonzero(mask)
        assert found.boxes[j].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert (np.diff(found.objectness) <= 0).all()
    stored = proposals_from_table(proposals_to_table([found]))[0]
    assert (drawn(stored) == masks).all()


@pytest.mark.parametrize("in_struct", [False, True])
def test_mcg(savemat, tmp_path, in_struct):
    rng = np.random.default_rng(1)
    superpixels = superpixel_map(rng)
    lists = label_lists(rng, superpixels)
    scores = rng.permutation(len(lists)).astype(float)[:, None]
    scores[5] = scores[8]  # equal ones keep their order
    fields = {
        "superpixels": superpixels.astype(np.uint16),
        "labels": [ids.astype(np.uint32) for ids in lists],
        "scores": scores,
        "bboxes": rng.integers(1, 20, (7, 4)),  # fewer rows: never to be read with labels
    }
    savemat({"proposals": fields} if in_struct else fields)
    order = sorted(range(len(lists)), key=lambda j: (-scores[j, 0], j))
    masks = slow_masks(superpixels, lists)[order]
    found = load(tmp_path, "mcg")
    check(found, masks)
    assert found.objectness.tolist() == scores[order, 0].tolist()
    check(load(tmp_path, "mcg", max_candidates=5), masks[:5])


def test_mcg_without_scores_keeps_the_order_and_empty_proposals_go(savemat, tmp_path):
    superpixels = superpixel_map(np.random.default_rng(2))
    superpixels[0, :9] = 0  # pixels of no superpixel
    lists = [np.array([[9]]), np.array([[2, 7]]), np.zeros((1, 0)), np.array([[1, 4, 9]])]
    savemat({"superpixels": superpixels.astype(float), "labels": lists})
    check(load(tmp_path, "mcg"), slow_masks(superpixels, [lists[0], lists[3]]))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("kind", ["gop", "rigor"])
def test_gop_and_rigor(savemat, tmp_path, kind, first, sparse):
    rng = np.random.default_rng(3)
    superpixels = superpixel_map(rng)
    lists = [np.unique(ids) for ids in label_lists(rng, superpixels)]
    indicator = np.zeros((superpixels.max(), len(lists)), bool)
    for j, ids in enumerate(lists):
        indicator[ids - 1, j] = True
    stored = (superpixels - 1 + first).astype(np.uint32 if kind == "gop" else np.uint16)
    assert first or stored.min() == 0
    savemat(
        {
            "superpixels": stored.T if kind == "gop" else stored,
            "indicator_matrix": scipy.sparse.csc_matrix(indicator) if sparse else indicator,
        }
    )
    check(load(tmp_path, kind), slow_masks(superpixels, lists))


def test_lpo_lays_its_maps_over_one_another(savemat, tmp_path):
    rng = np.random.default_rng(4)
    maps = [superpixel_map(rng, count) for count in (9, 20, 12)]
    parts = [label_lists(rng, item, count) for item, count in zip(maps, (4, 6, 5), strict=True)]
    savemat({"superpixels": [item.astype(np.uint32) for item in maps], "labels": parts})
    masks = np.concatenate([slow_masks(item, part) for item, part in zip(maps, parts, strict=True)])
    check(load(tmp_path, "lpo"), masks)
    check(load(tmp_path, "lpo", max_candidates=7), masks[:7])


def write_results(folder: Path, masks: np.ndarray, scores) -> None:
    """img.json in COCO's results format, every second mask with plain counts."""
    results = []
    for j, (mask, score) in enumerate(zip(masks, scores, strict=True)):
        counts: Any = rle.encode(mask).decode()
        if j % 2:
            runs = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=~mask[0, 0], append=~mask[-1, -1])))
            counts = ([0] if mask[0, 0] else []) + runs.tolist()
        size = list(mask.shape)
        results.append({"image_id": 7, "segmentation": {"size": size, "counts": counts}, "score": score})
    (folder / "img.json").write_text(json.dumps(results))


def test_masks_as_run_lengths_are_cut_into_their_own_superpixels(tmp_path):
    rng = np.random.default_rng(5)
    superpixels = superpixel_map(rng, 40)
    masks = np.array([np.isin(superpixels, rng.choice(40, 9)) for _ in range(30)])
    masks[4] = False
    masks[6] = True
    masks[7] = masks[8]
    scores = rng.permutation(30) / 7
    write_results(tmp_path, masks, scores)
    order = [j for j in np.argsort(-scores) if j != 4]
    found = load(tmp_path, "rle")
    check(found, masks[order])
    assert found.num_superpixels == len(np.unique(masks.reshape(30, -1), axis=1).T)
    check(load(tmp_path, "rle", max_candidates=3), masks[order][:3])


def test_no_mask_at_all_is_an_image_without_candidates(tmp_path):
    write_results(tmp_path, np.zeros((2, HEIGHT, WIDTH), bool), [1, 2])
    found = load(tmp_path, "rle")
    assert len(found) == 0 and found.num_superpixels == 1 and found.boxes.shape == (0, 4)


def test_too_many_superpixels_are_refused_and_fewer_masks_help(tmp_path):
    """The masks are the binary digits of a pixel's number, so every pixel is a superpixel of its own."""
    image = np.zeros((300, 300, 3), np.uint8)
    number = np.arange(300 * 300).reshape(300, 300).T
    write_results(tmp_path, np.array([number >> digit & 1 == 1 for digit in range(17)]), range(17))
    with pytest.raises(RecordError, match=r"too many superpixels.*img\.json.*<= 65536; .*max_candidates"):
        import_proposals(image, ImportedSettings(str(tmp_path), "rle"), image_id="a/img")
    few = import_proposals(image, ImportedSettings(str(tmp_path), "rle", max_candidates=10), image_id="a/img")
    assert len(few) == 10 and few.num_superpixels == len(np.unique(number >> 7))


MAP = np.ones((HEIGHT, WIDTH))
GOOD = {"superpixels": MAP, "labels": [np.array([[1]])], "scores": np.array([[1.0]])}


@pytest.mark.parametrize(
    ("kind", "variables", "match"),
    [
        ("mcg", GOOD | {"superpixels": MAP.T}, r"another size than the image.*found: '23 x 37'; expected: 37 x 23"),
        ("mcg", {"labels": []}, r"lacks a variable.*field: superpixels; found: \['labels'\]"),
        ("mcg", GOOD | {"superpixels": MAP / 2}, "not superpixel ids.*integers 0 to 851"),
        ("mcg", GOOD | {"superpixels": MAP * 1e6}, "not superpixel ids"),
        ("mcg", GOOD | {"superpixels": [MAP]}, "not an array of numbers.*superpixels; found: 'list'"),
        ("mcg", GOOD | {"labels": [[MAP]]}, "not an array of numbers.*labels"),
        ("mcg", GOOD | {"scores": [MAP]}, "not an array of numbers.*scores"),
        ("mcg", GOOD | {"labels": np.array([[1.0]])}, "not a cell"),
        ("mcg", GOOD | {"labels": [np.array([[0]])]}, "not superpixel ids.*labels.*integers 1 to 1"),
        ("mcg", GOOD | {"labels": [np.array([[2]])]}, "not superpixel ids.*labels.*integers 1 to 1"),
        ("mcg", GOOD | {"scores": np.ones((2, 1))}, "not one number per proposal.*found: 2; expected: 1 numbers"),
        ("mcg", GOOD | {"scores": np.array([[np.nan]])}, "not one number per proposal"),
        ("gop", {"superpixels": MAP, "indicator_matrix": np.ones((1, 2))}, "another size than the image"),
        ("rigor", {"superpixels": MAP * 5, "indicator_matrix": np.ones((3, 2))}, r"too few rows.*\(3, 2\).*5 rows"),
        ("rigor", GOOD, "lacks a variable.*indicator_matrix"),
        ("lpo", GOOD, "cells differ in length"),
        ("lpo", {"superpixels": [MAP], "labels": [[], []]}, "cells differ in length"),
        ("lpo", {"superpixels": [MAP, MAP.T], "labels": [[], []]}, "maps differ in size"),
    ],
)
def test_wrong_files_name_file_field_value_and_what_was_expected(savemat, tmp_path, kind, variables, match):
    savemat(variables)
    with pytest.raises(RecordError, match=match) as caught:
        load(tmp_path, kind)
    assert caught.value.file == str(tmp_path / "img.mat")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not valid JSON"),
        ("", r"the file is empty.*\[\] for an image without masks"),
        ("{}", "not a list of masks; .*found: 'an object with nothing'; expected: .*segmentation, score"),
        ('{"image": {}, "masks": []}', "not a list of masks.*an object with image, masks"),
        ("[1]", "not a list of masks"),
        ('[{"score": 1' + "0" * 400 + "}]", "has no score"),
        ('[{"score": 1}, {"predicted_iou": 1}]', "mask 2 has no score.*field: score; expected: a number for each mask"),
        ('[{"predicted_iou": true}]', "mask 1 has no score.*field: predicted_iou; found: True"),
        ('[{"score": NaN}]', "has no score"),
        ("[" * 100_000, "nested too deep"),
        ("[" + "1" * 5000 + "]", "not valid JSON"),
        ('[{"segmentation": [[1, 2]], "score": 1}]', "not a polygon.*field: segmentation of mask 1; .*three points"),
        ('[{"segmentation": [[1, 2, 3, 4, 5, null]]}]', "not a polygon"),
        ('[{"segmentation": [[1, 2, 3, 4, 5, Infinity]]}]', "not a polygon"),
        ('[{"segmentation": [[1, 2, 40, 2, 5, 5]]}]', r"beyond the image.*40\.0, 5\.0.*x from 0 to 37, y from 0 to 23"),
        ('[{"segmentation": [[0, 1], [1, 0]]}]', r"another size than the image.*\[2, 2\].*\[23, 37\]"),
        ('[{"segmentation": "x"}]', "the segmentation is no mask.*found: 'str'; expected: run lengths"),
        ('[{"score": 1}]', "the segmentation is no mask.*found: 'NoneType'"),
        (
            '{"image": {"width": 23, "height": 37}, "annotations": []}',
            "the file is of an image of another size.*found: '23 x 37'; expected: 37 x 23",
        ),
        ('[{"image_id": 3}, {"image_id": "x"}]', r"no mask is of this image.*\['3', 'x'\]; expected: image_id img"),
        ('{"images": 3, "annotations": []}', "not a list of images"),
        (
            '[{"segmentation": {"size": [37, 23], "counts": [851]}, "score": 1}]',
            r"size.*\[37, 23\].*\[23, 37\], height",
        ),
        ('[{"segmentation": {"size": [23, 37], "counts": null}, "score": 1}]', "counts are no run lengths"),
        ('[{"segmentation": {"size": [23, 37], "counts": [850]}, "score": 1}]', "run lengths do not fit"),
    ],
)
def test_wrong_results_are_refused(tmp_path, text, match):
    (tmp_path / "img.json").write_text(text)
    with pytest.raises(RecordError, match=match) as caught:
        load(tmp_path, "rle")
    assert caught.value.file == str(tmp_path / "img.json")


def test_damaged_and_missing_files_are_reported(savemat, tmp_path):
    savemat(GOOD)
    whole = (tmp_path / "img.mat").read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"MATLAB 7.3 MAT-file and nothing", b"\x00" * 300):
        (tmp_path / "img.mat").write_bytes(data)
        with pytest.raises(RecordError, match=r"(not a readable MATLAB file|lacks a variable).*img\.mat"):
            load(tmp_path, "mcg")
    with pytest.raises(RecordError, match=r"no proposal file of this image.*img\.json"):
        load(tmp_path, "rle")


def test_a_pipe_is_named_and_a_store_that_fails_ends_the_job(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "img.json")
    with pytest.raises(RecordError, match=r"not a file; file: .*img\.json; found: 'a named pipe'"):
        load(tmp_path, "rle")

    def fail(uri: str) -> bytes:
        raise StorageError("the store refuses", file=uri)

    monkeypatch.setattr(storage, "read_bytes", fail)
    with pytest.raises(StorageError, match="the store refuses"):
        load(tmp_path, "rle")


@pytest.mark.parametrize(
    ("given", "match"), [({}, "folder"), ({"folder": "f", "format": "x"}, "mcg or gop"),
                         ({"folder": "f", "max_candidates": 0}, "max_candidates")],
)  # fmt: skip
def test_settings_are_checked(given, match):
    with pytest.raises(SettingError, match=match):
        ImportedSettings(**given)


def test_equal_sums_of_different_masks_are_noticed(monkeypatch):
    class Constant:
        def integers(self, *_, **__):
            return np.uint64(1)

    monkeypatch.setattr(encoding.np.random, "default_rng", lambda _: Constant())
    masks = [np.eye(3, dtype=bool), ~np.eye(3, dtype=bool)]
    with pytest.raises(AssertionError, match="equal sums"):
        encoding.from_masks(zip(masks, [1, 2], strict=True), shape=(3, 3))


# -- masks of promptable segmenters ------------------------------------------------------------------------------------


def runs_of(mask: np.ndarray) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": rle.encode(mask).decode()}


def automatic(masks: np.ndarray, scores) -> list[dict[str, Any]]:
    """What SAM's automatic mask generation writes for an image; every third mask as a binary mask."""
    return [
        {
            "segmentation": mask.astype(int).tolist() if j % 3 == 2 else runs_of(mask),
            "area": int(mask.sum()),
            "bbox": [0, 0, 5, 5],
            "predicted_iou": score,
            "point_coords": [[3.5, 2.5]],
            "stability_score": 1 - score,
            "crop_box": [0, 0, WIDTH, HEIGHT],
        }
        for j, (mask, score) in enumerate(zip(masks, scores, strict=True))
    ]


def some_masks(count: int = 6) -> np.ndarray:
    rng = np.random.default_rng(8)
    superpixels = superpixel_map(rng, 40)
    return np.array([np.isin(superpixels, rng.choice(40, 9)) for _ in range(count)])


@pytest.mark.parametrize("wrap", ["SAM", "SA-1B"])
def test_automatic_masks_of_sam_are_ordered_by_the_predicted_iou(tmp_path, wrap):
    masks, scores = some_masks(), [0.3, 0.9, 0.5, 0.95, 0.1, 0.7]
    items: Any = automatic(masks, scores)
    if wrap == "SA-1B":
        items = {"image": {"image_id": 5, "width": WIDTH, "height": HEIGHT, "file_name": "a.jpg"}, "annotations": items}
    (tmp_path / "img.json").write_text(json.dumps(items))
    order = np.argsort(-np.array(scores))
    found = load(tmp_path, "rle")
    check(found, masks[order])
    assert found.objectness.tolist() == np.float32(scores)[order].tolist()
    check(load(tmp_path, "rle", max_candidates=2), masks[order][:2])


def test_masks_without_scores_keep_the_order_of_the_file(tmp_path):
    masks = some_masks()
    (tmp_path / "img.json").write_text(json.dumps([{"segmentation": runs_of(mask)} for mask in masks]))
    check(load(tmp_path, "rle"), masks)


def test_polygons_are_drawn_and_cut_at_the_border(tmp_path):
    parts = [[2, 3, 10, 3, 10, 8, 2, 8], [20, 15, 37.5, 15, 37.5, 23.5, 20, 23.5]]
    (tmp_path / "img.json").write_text(json.dumps([{"segmentation": parts}, {"segmentation": []}]))
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:8, 2:10] = mask[15:, 20:] = True
    check(load(tmp_path, "rle"), mask[None])


@pytest.mark.parametrize("image_ids", [("img", "other"), ("7", "8"), (7, 8)])
def test_one_file_has_the_masks_of_all_images(tmp_path, image_ids):
    """As COCO's results; where ids are numbers, the list of images has the names."""
    masks, file = some_masks(), tmp_path / "all.json"
    results = [{"image_id": image_ids[j % 2], "segmentation": runs_of(mask)} for j, mask in enumerate(masks)]
    value: Any = results
    if image_ids[0] != "img":
        images = [{"id": image_ids[0], "file_name": "img.jpg"}, {"id": 99, "file_name": "none.jpg"}]
        value = {"images": images, "annotations": results}
    file.write_text(json.dumps(value))
    check(load(file, "rle"), masks[::2])
    (tmp_path / "img.json").write_text(file.read_text())  # the same as a file of the image
    check(load(tmp_path, "rle"), masks[::2])
    with pytest.raises(RecordError, match=r"no mask is of this image; file: .*all\.json; field: image_id") as caught:
        import_proposals(IMAGE, ImportedSettings(str(file), "rle"), image_id="coco/000000000012")
    assert "expected: image_id 000000000012 or 12" in str(caught.value)


def test_a_number_is_the_id_of_a_file_with_leading_zeros(tmp_path):
    masks, file = some_masks(2), tmp_path / "all.json"
    file.write_text(json.dumps([{"image_id": j, "segmentation": runs_of(mask)} for j, mask in enumerate(masks)]))
    for j, name in enumerate(("coco/train2017/000000000000", "coco/000000000001")):
        found = import_proposals(IMAGE, ImportedSettings(str(file), "rle"), image_id=name)
        assert (drawn(found) == masks[j][None]).all()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "no such folder or file"),
        ("", "the file is empty"),
        ("{", "not valid JSON"),
        ("3", "not a list of masks"),
    ],
)
def test_a_bad_file_of_all_images_is_refused_before_a_build_starts(tmp_path, text, match):
    if text is not None:
        (tmp_path / "all.json").write_text(text)
    settings = ImportedSettings(str(tmp_path / "all.json"), "rle")
    with pytest.raises(InputError, match=rf"{match}.*all\.json") as caught:
        identity(METHODS["imported"], settings)
    assert not isinstance(caught.value, RecordError)
    (tmp_path / "all.json").write_text("[]")
    assert identity(METHODS["imported"], settings)["format"] == "rle"
    with pytest.raises(RecordError, match="no mask is of this image"):
        load(tmp_path / "all.json", "rle")
