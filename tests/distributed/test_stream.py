"""The training stream: the same global batches for any number of workers, from any step on, through Ray as without."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import ray

from boxsup_dist.assignment.assign import assign_row_group
from boxsup_dist.errors import RecordError
from boxsup_dist.labels import Labels
from boxsup_dist.training import stream
from boxsup_dist.training.plan import plan_epoch
from boxsup_dist.training.stream import Source, load_slice, worker_batches
from tests.distributed import tiny

BATCH, EPOCH = 4, 2


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    """Box supervision on records whose ground truth would break whoever reads it."""
    train, proposals, _ = tiny.write_tables(tmp_path_factory.mktemp("poisoned"), mask=tiny.POISON)
    return Source(train, proposals, "box", tiny.ASSIGNMENT, tiny.AUGMENT, seed=5)


def with_supervision(source: Source, supervision: str) -> Source:
    return Source(source.records, None, supervision, source.assignment, source.augment, source.seed)


def make_labels(source: Source) -> Labels:
    parts = [
        assign_row_group(
            None, source.records.read(w), source.proposals.read(w), source.assignment, seed=source.seed, epoch=EPOCH
        )
        for w in source.records.row_groups()
    ]
    return Labels.concatenate(parts)


def make_plan(source: Source, epoch: int = EPOCH):
    return plan_epoch(source.records.row_groups(), seed=source.seed, epoch=epoch, global_batch_size=BATCH)


def stream_all(source: Source, labels, num_workers: int = 1, start_step: int = 0, epoch: int = EPOCH) -> dict:
    """step -> image_id -> (image, label map), over all workers."""
    plan = make_plan(source, epoch)
    steps: dict[int, dict] = {step: {} for step in range(start_step, plan.num_steps)}
    for rank in range(num_workers):
        batches = worker_batches(
            source, plan, labels, epoch=epoch, rank=rank, num_workers=num_workers, start_step=start_step
        )
        for step, batch in enumerate(batches, start_step):
            assert batch.step == step
            for i, image_id in enumerate(batch.image_ids):
                assert image_id not in steps[step]
                steps[step][image_id] = (batch.images[i], batch.label_maps[i])
    return steps


def assert_same(found: dict, expected: dict) -> None:
    assert {step: set(pairs) for step, pairs in found.items()} == {step: set(p) for step, p in expected.items()}
    for step, pairs in expected.items():
        for image_id, arrays in pairs.items():
            for ours, theirs in zip(found[step][image_id], arrays, strict=True):
                assert ours.dtype == theirs.dtype == np.uint8 and (ours == theirs).all()


def oracle(source: Source, labels: Labels | None) -> dict:
    """The same without Ray, lane by lane."""
    plan = make_plan(source)
    steps: dict[int, dict] = {step: {} for step in range(plan.num_steps)}
    for piece in plan.slices:
        rows = load_slice(piece, source, labels, EPOCH)
        for i, image_id in enumerate(rows["image_id"].tolist()):
            steps[piece.first_step + i][image_id] = (rows["image"][i], rows["label_map"][i])
    return steps


def test_any_number_of_workers_gives_the_same_batches_from_any_step_on(ray_local, source):
    """Box supervision works although every gt_label_map and instance mask is poisoned: the stream opens none."""
    assert not {"gt_label_map", "instance_masks"} & {
        *stream.GRANTED_COLUMNS["box"],
        *stream.GRANTED_COLUMNS["rectangles"],
    }
    labels = make_labels(source)
    expected = oracle(source, labels)
    assert sorted(i for pairs in expected.values() for i in pairs) == [f"tiny/train_{k:02d}" for k in range(14)]
    assert [len(pairs) for pairs in expected.values()] == [4, 4, 4, 2]
    reference = ray.put(labels)
    for num_workers in (1, 2, 3):
        assert_same(stream_all(source, reference, num_workers), expected)
    rest = stream_all(source, reference, 2, start_step=2)
    assert_same(rest, {step: expected[step] for step in (2, 3)})


def test_blocks_may_arrive_in_any_order(source, monkeypatch):
    """Ray Data gives blocks as they finish: each row must find its step all the same."""
    source = with_supervision(source, "rectangles")
    expected = oracle(source, None)

    def shuffled(slices, source, labels, epoch, max_tasks) -> Iterator[dict]:
        blocks = [load_slice(piece, source, labels, epoch) for piece in slices]
        random.Random(0).shuffle(blocks)
        for block in blocks:
            for i in range(len(block["lane"])):
                yield {name: values[i] for name, values in block.items()}

    monkeypatch.setattr(stream, "_lane_rows", shuffled)
    assert_same(stream_all(source, None, 2), expected)


def test_the_order_and_the_pixels_change_with_the_epoch(source):
    plans = [make_plan(source, epoch) for epoch in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


def test_rectangles_need_no_mask_and_masks_that_do_not_decode_name_their_record(ray_local, source):
    rectangles = stream_all(with_supervision(source, "rectangles"), None, num_workers=2)
    maps = [pair[1] for pairs in rectangles.values() for pair in pairs.values()]
    assert len(maps) == 14 and all(m.shape == (65, 65) for m in maps) and any((m > 0).any() for m in maps)
    with pytest.raises(RecordError, match=r"does not decode.*records.*image_id.*tiny/train_\d\d"):
        stream_all(with_supervision(source, "mask"), None)


def test_worker_without_a_record_in_the_last_step_gets_an_empty_batch(source, monkeypatch):
    source = with_supervision(source, "rectangles")
    plan = make_plan(source)
    monkeypatch.setattr(
        stream, "_lane_rows", lambda slices, *_: iter([{"lane": s.lane, "step": s.first_step + i, "image_id": "x",
        "image": np.zeros(1), "label_map": np.zeros(1)} for s in slices for i in range(len(s.rows))])
    )  # fmt: skip
    sizes = [
        [len(b.image_ids) for b in worker_batches(source, plan, None, epoch=0, rank=rank, num_workers=4)]
        for rank in range(4)
    ]
    assert sizes == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]]
