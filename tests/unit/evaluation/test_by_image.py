"""Matrices of single images come back, and only those of the same images are compared."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from boxsup_dist.errors import InputError
from boxsup_dist.evaluation.by_image import ByImage, paired, read_by_image, sparse_rows, write_by_image

NAMES = ("background", "cat", "dog")


def matrices(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"voc/{i}": rng.integers(0, 10**6, (3, 3)) * (rng.random((3, 3)) < 0.5) for i in range(count)}


def kept(tmp_path, found: dict[str, np.ndarray], names: tuple[str, ...] = NAMES) -> ByImage:
    uri = str(tmp_path / "kept.parquet")
    rows = [sparse_rows([item]) for item in found.items()]  # row groups come one by one
    return read_by_image(uri, write_by_image(uri, pa.concat_tables([sparse_rows([]), *rows]), names))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_matrices_come_back(tmp_path, count):
    given = matrices(count)
    found = kept(tmp_path, given)
    assert (found.image_ids, found.class_names) == (tuple(given), NAMES)
    dense = found.matrices.toarray().reshape(-1, 3, 3)
    np.testing.assert_array_equal(dense, np.array(list(given.values())).reshape(-1, 3, 3))
    assert found.total.dtype == np.int64
    np.testing.assert_array_equal(found.total, sum(given.values(), np.zeros((3, 3), int)))


def test_254_classes_fit(tmp_path):
    names = tuple(map(str, range(255)))
    matrix = np.zeros((255, 255), np.int64)
    matrix[254, 253] = 2**32 - 1
    np.testing.assert_array_equal(kept(tmp_path, {"a": matrix}, names).total, matrix)


def test_a_damaged_file_is_one_line_that_names_it(tmp_path):
    path = tmp_path / "kept.parquet"
    proof = write_by_image(str(path), sparse_rows(matrices(5).items()), NAMES)
    whole = path.read_bytes()
    assert read_by_image(str(path), proof).image_ids == tuple(matrices(5))
    for damaged in (b"", b"no parquet", whole[: len(whole) // 2], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"the file is damaged.*kept.parquet"):
            read_by_image(str(path), proof)
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"not of the evaluation of the confusion\.json"):
        read_by_image(str(path), None)


def test_rows_are_brought_into_the_order_of_the_first(tmp_path):
    given = matrices(6)
    first, second = kept(tmp_path, given), kept(tmp_path, dict(reversed(given.items())))
    one, other = paired([("a", first), ("b", second)])
    np.testing.assert_array_equal(one.toarray(), other.toarray())


def test_other_images_classes_and_ground_truth_are_refused(tmp_path):
    given = matrices(4)
    first = kept(tmp_path, given)
    moved = given | {"voc/2": given["voc/2"] + np.eye(3, dtype=int)}
    for other, names, problem in (
        (matrices(5), NAMES, r"images differ.*voc/4 is in one"),
        (given, ("background", "cat", "cow"), "classes differ"),
        (moved, NAMES, r"ground truth differs.*voc/2"),
    ):
        with pytest.raises(InputError, match=problem) as caught:
            paired([("run/a", first), ("run/b", kept(tmp_path, other, names))])
        assert "run/a" in str(caught.value) and "run/b" in str(caught.value)
