"""Rows of the proposals table: what is stored comes back."""

import numpy as np
import pyarrow as pa
import pytest

from boxsup_dist.data.schema import PROPOSALS, proposals_from_table, proposals_to_table
from tests.random_proposals import proposals_of, random_proposals


@pytest.mark.parametrize("counts", [[5], [0], [3, 0, 4], [0, 0], []])
@pytest.mark.parametrize("chunked", [False, True])
def test_proposals_survive_their_table(counts, chunked):
    before = [
        random_proposals(np.random.default_rng(i), 9, 11, num_proposals=n, image_id=f"test/{i}")
        if n
        else proposals_of(np.zeros((4, 5), np.uint16), 1, [], f"test/{i}")
        for i, n in enumerate(counts)
    ]
    table = proposals_to_table(before)
    assert table.schema == PROPOSALS
    if chunked and counts:
        table = pa.concat_tables([table, table]).slice(len(counts))
    after = proposals_from_table(table)
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        assert (new.image_id, new.num_superpixels, len(new)) == (old.image_id, old.num_superpixels, len(old))
        for name in ("superpixels", "indptr", "indices", "objectness", "boxes"):
            a, b = getattr(old, name), getattr(new, name)
            assert b.dtype == a.dtype and b.shape == a.shape and (b == a).all(), name


def test_rows_of_a_proposals_table_can_be_taken_one_by_one():
    before = [random_proposals(np.random.default_rng(i), 9, 11, image_id=str(i)) for i in range(4)]
    table = proposals_to_table(before)
    for i, old in enumerate(before):
        (new,) = proposals_from_table(table.slice(i, 1))
        assert new.image_id == old.image_id and (new.indices == old.indices).all() and (new.indptr == old.indptr).all()
