"""Labels of a row group: all boxes in order, the same in any grouping, without columns that boxes do not grant."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from boxsup_dist.assignment.assign import RECORD_COLUMNS, assign_row_group, repeats
from boxsup_dist.assignment.consensus import CALIBRATION, NUM_VOTERS, find_consensus
from boxsup_dist.assignment.oracle import oracle_costs
from boxsup_dist.assignment.refine import refine_segments
from boxsup_dist.assignment.select import by_cost, choose
from boxsup_dist.config import AssignmentSettings
from boxsup_dist.data.images import decode_image, encode_png
from boxsup_dist.data.painting import pixel_box
from boxsup_dist.data.schema import LABELS, Record, proposals_from_table, proposals_to_table, records_to_table
from boxsup_dist.runs.recipes import RECIPES
from tests.random_proposals import areas_in, random_proposals

NUM_CLASSES, HEIGHT, WIDTH = 4, 18, 24
PAPER = AssignmentSettings()
MINI = replace(RECIPES["mini"]("run", (), None).assignment, ignore_undecided=0.25)
NUM_BOXES = [2, 0, 3, 1, 0, 2]
ALL = range(len(NUM_BOXES))
CROWDS = {(2, 1), (3, 0)}  # (image, box)


def predict(image: np.ndarray) -> np.ndarray:
    """Stand-in for a network: log-softmax of a few mixtures of the colours, float32 (C, H, W)."""
    mixture = np.array([[1, 0, -1], [0, 2, 0], [1, 1, 1], [-1, 0.5, 2]]) / 80
    logits = np.einsum("ck,hwk->chw", mixture, image.astype(np.float64))
    return (logits - np.log(np.exp(logits).sum(axis=0))).astype(np.float32)


def make_record(index: int) -> Record:
    rng = np.random.default_rng(index)
    corners = np.sort(rng.uniform(0, (WIDTH, HEIGHT), (NUM_BOXES[index], 2, 2)), axis=1)
    return Record(
        image_id=f"test/{index}",
        source="test",
        split="train",
        image=encode_png(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)),
        height=HEIGHT,
        width=WIDTH,
        boxes_xyxy=corners.reshape(-1, 4).astype(np.float32),
        class_ids=rng.integers(1, NUM_CLASSES, NUM_BOXES[index]).astype(np.int32),
        difficult=rng.random(NUM_BOXES[index]) < 0.5,
        crowd=np.array([(index, k) in CROWDS for k in range(NUM_BOXES[index])], bool),
        gt_label_map=b"poison",
        instance_masks=[b"poison"] * NUM_BOXES[index],
    )


RECORDS = [make_record(i) for i in range(len(NUM_BOXES))]
PROPOSALS = [
    random_proposals(np.random.default_rng(100 + i), HEIGHT, WIDTH, image_id=f"test/{i}") for i in range(len(NUM_BOXES))
]


def tables(indices, columns=RECORD_COLUMNS) -> tuple[pa.Table, pa.Table]:
    records = records_to_table([RECORDS[i] for i in indices]).select(list(columns))
    return records, proposals_to_table([PROPOSALS[i] for i in indices])


def assign(indices=ALL, settings=PAPER, log_probs_of=predict, columns=RECORD_COLUMNS, **key):
    records, proposals = tables(indices, columns)
    return assign_row_group(log_probs_of, records, proposals, settings, **{"seed": 3, "epoch": 1, **key})


def undecided_of(costs, proposals, box, settings, chosen):
    """Superpixels of the box that are undecided, and their shares, with the votes counted one by one."""
    if settings.ignore_undecided is None:
        return {}
    voters = by_cost(costs, settings.regression_weight)[:NUM_VOTERS]
    total = costs.total(settings.regression_weight)[voters]
    votes = np.exp(-(total - total.min()) / settings.consensus_temperature)
    x0, y0, x1, y1 = pixel_box(box, *proposals.superpixels.shape)
    found = {}
    for superpixel in np.unique(proposals.superpixels[y0:y1, x0:x1]).tolist():
        wants = [superpixel in proposals.members(costs.candidates[v]) for v in voters]
        share = votes[wants].sum() / votes.sum()
        if share < 0.5 if superpixel in chosen else share > settings.ignore_undecided:
            found[superpixel] = share * np.exp(CALIBRATION) / (share * np.exp(CALIBRATION) + 1 - share)
    return found


def order_of(costs, proposals, box, settings):
    if settings.consensus_temperature is None:
        return by_cost(costs, settings.regression_weight)
    weights = {"regression_weight": settings.regression_weight, "temperature": settings.consensus_temperature}
    return find_consensus(costs, proposals, areas_in(proposals, box), **weights).order


@pytest.mark.parametrize("settings", [PAPER, MINI, replace(PAPER, box_margin=0.0)], ids=["paper", "mini", "clip"])
@pytest.mark.parametrize("warm_up", [False, True])
def test_every_row_is_the_oracles_choice(settings, warm_up):
    labels = assign(settings=settings, log_probs_of=None if warm_up else predict)
    assert labels.schema == LABELS
    rows = iter(labels.to_pylist())
    for record, proposals in zip(RECORDS, PROPOSALS, strict=True):
        costs = oracle_costs(
            proposals,
            record.boxes_xyxy,
            record.class_ids,
            None if warm_up else predict(decode_image(record.image)),
            form=settings.form,
            box_margin=settings.box_margin,
            logit_limit=settings.logit_limit,
            rank_weight=settings.rank_weight,
        )
        for k, box_costs in enumerate(costs):
            row = next(rows)
            assert (row["image_id"], row["box_index"], row["class_id"]) == (record.image_id, k, record.class_ids[k])
            if record.crowd[k]:
                continue
            choice = choose(
                box_costs,
                order_of(box_costs, proposals, record.boxes_xyxy[k], settings),
                top_k=settings.top_k,
                seed=3,
                epoch=1,
                image_id=record.image_id,
                box_index=k,
            )
            assert (row["proposal_index"], row["rank"]) == (choice.proposal_index, choice.rank)
            assert row["superpixel_ids"] == proposals.members(choice.proposal_index).tolist()
            undecided = undecided_of(box_costs, proposals, record.boxes_xyxy[k], settings, row["superpixel_ids"])
            assert row["undecided_ids"] == list(undecided)
            assert row["undecided_probability"] == pytest.approx(list(undecided.values()), rel=1e-5)
            assert row["overlap_cost"] == pytest.approx(choice.overlap_cost, rel=1e-6)
            assert row["regression_cost"] == pytest.approx(choice.regression_cost, rel=1e-6, abs=1e-9)
    assert next(rows, None) is None


def test_a_crowd_takes_no_candidate():
    rows = {(row["image_id"], row["box_index"]): row for row in assign().to_pylist()}
    for index, k in CROWDS:
        row = rows[f"test/{index}", k]
        assert (row["proposal_index"], row["superpixel_ids"], row["rank"]) == (-1, [], -1)
        assert np.isnan(row["overlap_cost"]) and np.isnan(row["regression_cost"])
    assert sum(row["proposal_index"] == -1 for row in rows.values()) == len(CROWDS)


@pytest.mark.parametrize("groups", [[[0, 1, 2, 3, 4, 5]], [[0], [1], [2], [3], [4], [5]], [[4, 2, 0], [5, 3, 1]]])
@pytest.mark.parametrize("settings", [PAPER, MINI], ids=["paper", "mini"])
def test_rows_do_not_depend_on_the_grouping(groups, settings):
    def by_box(parts):
        return {(row["image_id"], row["box_index"]): str(row) for part in parts for row in part.to_pylist()}

    assert by_box([assign(group, settings) for group in groups]) == by_box([assign(settings=settings)])


def test_the_paper_makes_a_new_draw_every_epoch_and_winner_takes_all_does_not():
    def chosen(settings, **key):
        return assign(settings=settings, **key)["proposal_index"].to_pylist()

    assert chosen(PAPER, epoch=1) == chosen(PAPER, epoch=1) != chosen(PAPER, epoch=2)
    assert chosen(PAPER, seed=1) != chosen(PAPER, seed=2)
    assert chosen(MINI, epoch=1) == chosen(MINI, epoch=2, seed=9)


@pytest.mark.parametrize("count", [1, 4, 10**6])
def test_a_smaller_number_of_candidates_needs_no_other_table(count):
    records, proposals = tables(ALL)
    cut = proposals_to_table(proposals_from_table(proposals, count))
    expected = assign_row_group(predict, records, cut, MINI, seed=3, epoch=1)
    found = assign(settings=replace(MINI, max_candidates=count))
    assert str(found.to_pylist()) == str(expected.to_pylist())  # as text: a crowd's costs are nan
    assert max(expected["proposal_index"].to_pylist()) < count


def test_warm_up_needs_no_image():
    without = [name for name in RECORD_COLUMNS if name != "image"]
    assert str(assign(log_probs_of=None, columns=without).to_pylist()) == str(assign(log_probs_of=None).to_pylist())
    assert set(assign(log_probs_of=None)["regression_cost"].to_pylist()) >= {0.0}


def test_refinement_begins_at_its_epoch_and_keeps_the_choice(monkeypatch):
    shares = []

    def watch(*args, **options):
        found = refine_segments(*args, **options)
        shares.extend(found)
        return found

    monkeypatch.setattr("boxsup_dist.assignment.assign.refine_segments", watch)
    refining = replace(MINI, refine_from_epoch=3)
    assert str(assign(settings=refining, epoch=1).to_pylist()) == str(assign(settings=MINI, epoch=1).to_pylist())
    plain, refined = assign(settings=MINI, epoch=2).to_pylist(), assign(settings=refining, epoch=2).to_pylist()
    choice = ("image_id", "box_index", "class_id", "proposal_index", "rank")
    assert [[row[name] for name in choice] for row in refined] == [[row[name] for name in choice] for row in plain]
    changed = [a["superpixel_ids"] != b["superpixel_ids"] for a, b in zip(plain, refined, strict=True)]
    assert any(changed)
    without = [row for row in refined if row["proposal_index"] < 0]
    assert without and all(row["superpixel_ids"] == [] == row["undecided_ids"] for row in without)
    # The refined outline alone says what is undecided, not the candidates' votes that it overrules.
    for row, share in zip(refined, shares, strict=True):
        cut = [] if share is None else [i for i, part in enumerate(share) if 0.25 < part < 0.75]
        assert row["undecided_ids"] == cut
        assert row["superpixel_ids"] == ([] if share is None else [i for i, part in enumerate(share) if part >= 0.5])
    turned, ignored = 0, 0
    for a, b in zip(plain, refined, strict=True):
        changed_ids = set(a["superpixel_ids"]) ^ set(b["superpixel_ids"])
        turned, ignored = turned + len(changed_ids), ignored + len(changed_ids & set(b["undecided_ids"]))
    assert turned and ignored < 0.5 * turned
    whole = assign(settings=replace(refining, ignore_undecided=None), epoch=2).to_pylist()
    assert not any(row["undecided_ids"] for row in whole)


def test_labels_repeat_in_the_warm_up_unless_drawn_or_refinement_starts():
    settings = replace(MINI, warmup_epochs=3)
    assert [repeats(settings, epoch) for epoch in range(5)] == [False, True, True, False, False]
    assert [repeats(replace(settings, refine_from_epoch=3), e) for e in range(4)] == [False, True, False, False]
    assert not any(repeats(replace(settings, top_k=5), epoch) for epoch in range(5))
    first, second = (assign(settings=settings, log_probs_of=None, epoch=epoch) for epoch in (1, 2))
    assert str(first.to_pylist()) == str(second.to_pylist())


def test_static_label_maps_vote_in_epochs_that_refine():
    records = tables(ALL)[0]
    maps = [np.full((r.height, r.width), int(r.class_ids[0]) if len(r.class_ids) else 0, np.uint8) for r in RECORDS]
    stored = pa.table({"image_id": records["image_id"], "label_map": [encode_png(m) for m in maps]})
    refining = replace(MINI, refine_from_epoch=1)

    def sizes(**key):
        found = assign(settings=refining, log_probs_of=None, **key)
        return sum(len(row["superpixel_ids"]) for row in found.to_pylist())

    assert sizes(label_maps=stored) > sizes()


def test_supervision_by_boxes_never_reads_the_ground_truth():
    assert not {"gt_label_map", "instance_masks"} & set(RECORD_COLUMNS)
    # The stored ground truth does not decode: a function that opens it would fail.
    assert str(assign(columns=(*RECORD_COLUMNS, "gt_label_map", "instance_masks")).to_pylist()) == str(
        assign().to_pylist()
    )


def test_the_network_sees_only_images_that_have_boxes():
    seen = []

    def watch(image):
        seen.append(image)
        return predict(image)

    assign(log_probs_of=watch)
    expected = [decode_image(record.image) for record in RECORDS if len(record.boxes_xyxy)]
    assert len(seen) == len(expected) and all((a == b).all() for a, b in zip(seen, expected, strict=True))


def test_a_row_group_without_boxes_gives_an_empty_table():
    labels = assign([1, 4])
    assert labels.num_rows == 0 and labels.schema == LABELS


def test_tables_of_other_images_are_not_paired():
    records, _ = tables([0, 1])
    _, proposals = tables([1, 0])
    with pytest.raises(AssertionError, match="paired"):
        assign_row_group(None, records, proposals, PAPER, seed=0, epoch=0)
