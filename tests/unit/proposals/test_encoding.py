"""The proposals table gives back what was put in, in one or several row groups, with and without candidates."""

import numpy as np
import pytest

from boxsup_dist.data import tables
from boxsup_dist.data.schema import Proposals, Record, proposals_from_table, proposals_to_table
from boxsup_dist.data.superpixels import decode_superpixels, encode_superpixels
from boxsup_dist.errors import TableError
from boxsup_dist.proposals.build import no_proposals
from boxsup_dist.proposals.selective_search import selective_search
from boxsup_dist.proposals.settings import SelectiveSearchSettings
from tests.unit.proposals.pictures import blobs


def empty(image_id: str) -> Proposals:
    nothing = np.empty(0)
    return no_proposals(Record(image_id, "", "", b"", 9, 7, nothing, nothing, nothing, nothing))


def assert_same(one: Proposals, two: Proposals) -> None:
    assert (one.image_id, one.num_superpixels, len(one)) == (two.image_id, two.num_superpixels, len(two))
    for field in ("superpixels", "indptr", "indices", "objectness", "boxes"):
        a, b = getattr(one, field), getattr(two, field)
        assert a.dtype == b.dtype and a.shape == b.shape and (a == b).all()


@pytest.mark.parametrize("row_group_size", [1, 2, 10])
def test_round_trip(tmp_path, row_group_size):
    settings = SelectiveSearchSettings(min_leaf_px=10, max_candidates=30)
    rows = [selective_search(blobs(40, 50 + seed, seed), settings, image_id=f"i{seed}") for seed in range(3)]
    rows = [empty("a"), *rows, empty("b")]
    uri = str(tmp_path / "t")
    shard = tables.write_shard(uri, 0, proposals_to_table(rows), "proposals", row_group_size=row_group_size)
    table = tables.publish(uri, "proposals", {}, [shard])
    found = [p for where in table.row_groups() for p in proposals_from_table(table.read(where))]
    assert len(found) == len(rows)
    for one, two in zip(rows, found, strict=True):
        assert_same(one, two)


@pytest.mark.parametrize("count", [1, 7, 30, 31, 10**6])
def test_the_best_candidates_are_read_alone(count):
    settings = SelectiveSearchSettings(min_leaf_px=10, max_candidates=30)
    rows = [empty("a"), *(selective_search(blobs(40, 50, seed), settings, image_id=f"i{seed}") for seed in range(2))]
    for whole, cut in zip(rows, proposals_from_table(proposals_to_table(rows), count), strict=True):
        assert len(cut) == min(len(whole), count) == len(cut.objectness) == len(cut.boxes)
        assert [cut.members(j).tolist() for j in range(len(cut))] == [
            whole.members(j).tolist() for j in range(len(cut))
        ]
        assert (cut.boxes == whole.boxes[:count]).all() and (cut.superpixels == whole.superpixels).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (50, 60)])
def test_superpixels_of_any_size(shape):
    superpixels = np.random.default_rng(0).integers(0, 2**16, shape).astype(np.uint16)
    decoded = decode_superpixels(encode_superpixels(superpixels))
    assert decoded.dtype == np.uint16 and decoded.flags.writeable and (decoded == superpixels).all()


@pytest.mark.parametrize("data", [b"", b"123", encode_superpixels(np.zeros((4, 5)))[:-3], b"\x89PNG" + bytes(50)])
def test_other_bytes_are_refused(data):
    with pytest.raises(OSError, match="not an encoded superpixel map"):
        decode_superpixels(data)


def test_pairing(tmp_path):
    def build(name: str, settings: dict, sizes: list[int]) -> tables.Table:
        uri = str(tmp_path / name)
        rows = [proposals_to_table([empty(f"{i}") for i in range(n)]) for n in sizes]
        shards = [tables.write_shard(uri, i, t, "proposals", row_group_size=2) for i, t in enumerate(rows)]
        return tables.publish(uri, "proposals", settings, shards)

    records = build("records", {}, [3, 2])
    made_from = {"records": records.fingerprint}
    tables.check_paired(records, build("good", made_from, [3, 2]))
    for name, settings, sizes in (("other", {"records": "0"}, [3, 2]), ("none", {}, [3, 2])):
        with pytest.raises(TableError, match="made from other records"):
            tables.check_paired(records, build(name, settings, sizes))
    for sizes in ([3, 3], [3], [3, 2, 1]):
        with pytest.raises(TableError, match=r"row groups|number of shards"):
            tables.check_paired(records, build(f"cut{len(sizes)}{sizes[-1]}", made_from, sizes))
