"""The matrix product returns the costs of the per-candidate oracle, and the costs behave as the method requires."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxsup_dist.assignment.cost import BoxCosts, box_iou, candidate_costs
from boxsup_dist.assignment.oracle import oracle_costs
from boxsup_dist.assignment.select import by_cost, choose
from boxsup_dist.assignment.sums import reduce_scores, select_scores
from boxsup_dist.config import AssignmentSettings
from boxsup_dist.data.schema import Proposals
from boxsup_dist.model.inference import predict_log_probs
from tests.networks import build_network
from tests.random_proposals import proposals_of, random_proposals

NUM_CLASSES = 5
FORMS = [
    {"form": form, "box_margin": margin, "logit_limit": limit, "rank_weight": rank_weight}
    for form, limit, rank_weight in (("image", None, 0.0), ("centred", None, 0.1), ("centred", 1.5, 0.0))
    for margin in (None, 0.0, 0.25)
]
forms = pytest.mark.parametrize("options", FORMS, ids=lambda o: "-".join(str(v) for v in o.values()))


def costs_of(proposals, boxes, class_ids, log_probs, *, rank_weight=0.0, **form) -> list[BoxCosts]:
    """Both halves: the sums, and the costs from them."""
    scores = None if log_probs is None else select_scores(log_probs, class_ids)
    maps = proposals.superpixels, proposals.num_superpixels
    sums = reduce_scores(scores, *maps, boxes, class_ids, AssignmentSettings(**form))
    return candidate_costs(proposals, boxes, sums, rank_weight=rank_weight)


def random_log_probs(rng: np.random.Generator, height: int, width: int, spread: float = 3.0) -> np.ndarray:
    logits = rng.normal(0, spread, (NUM_CLASSES, height, width))
    return (logits - np.log(np.exp(logits).sum(axis=0))).astype(np.float32)


def random_boxes(rng: np.random.Generator, height: int, width: int, num_boxes: int) -> np.ndarray:
    """Boxes (K, 4) of every kind: fractional, whole, at the border, the whole image, one pixel."""
    corners = np.sort(rng.uniform(0, (width, height), (num_boxes, 2, 2)), axis=1)
    boxes = corners.reshape(num_boxes, 4)
    whole = boxes.copy()
    whole[:, :2], whole[:, 2:] = np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])
    boxes = np.where(rng.random((num_boxes, 1)) < 0.5, whole, boxes)
    x, y = rng.integers(0, (width, height))
    special = [
        (0, 0, width, height),
        (x, y, x + 1, y + 1),
        (x + 0.25, y + 0.5, x + 0.5, y + 0.75),
        (0, 0, width / 2, height / 2),
        (width / 2, height / 2, width, height),
    ]
    return np.concatenate([boxes, special]).astype(np.float32)


def assert_same(found: list[BoxCosts], expected: list[BoxCosts]) -> None:
    assert len(found) == len(expected)
    for fast, slow in zip(found, expected, strict=True):
        np.testing.assert_array_equal(fast.candidates, slow.candidates)
        np.testing.assert_allclose(fast.overlap, slow.overlap, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(fast.regression, slow.regression, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(fast.prior, slow.prior, rtol=1e-12)


@given(
    seed=st.integers(0, 2**31),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    num_superpixels=st.integers(1, 25),
    num_proposals=st.integers(1, 25),
    options=st.sampled_from(FORMS),
    top_k=st.sampled_from([1, 5]),
    weight=st.sampled_from([0.0, 0.3, 3.0]),
)
def test_costs_and_choices_equal_the_oracles(
    seed, height, width, num_superpixels, num_proposals, options, top_k, weight
):
    rng = np.random.default_rng(seed)
    proposals = random_proposals(
        rng, height, width, num_superpixels=num_superpixels, num_proposals=num_proposals, image_id=str(seed)
    )
    boxes = random_boxes(rng, height, width, 3)
    class_ids = rng.integers(1, NUM_CLASSES, len(boxes))
    log_probs = random_log_probs(rng, height, width)
    fast = costs_of(proposals, boxes, class_ids, log_probs, **options)
    slow = oracle_costs(proposals, boxes, class_ids, log_probs, **options)
    assert_same(fast, slow)
    for k in range(len(boxes)):
        draw = {"top_k": top_k, "seed": 1, "epoch": 2, "image_id": "a", "box_index": k}
        a, b = (choose(costs[k], by_cost(costs[k], weight), **draw) for costs in (fast, slow))
        assert (a.proposal_index, a.rank) == (b.proposal_index, b.rank)


@forms
def test_one_pixel_image(options):
    proposals = proposals_of(np.zeros((1, 1), np.uint16), 1, [np.array([0])])
    log_probs = random_log_probs(np.random.default_rng(0), 1, 1)
    boxes, class_ids = np.array([[0, 0, 1, 1]], np.float32), np.array([2])
    found = costs_of(proposals, boxes, class_ids, log_probs, **options)
    assert_same(found, oracle_costs(proposals, boxes, class_ids, log_probs, **options))
    assert found[0].overlap.tolist() == [0.0]


@forms
def test_a_box_that_meets_no_proposal_has_no_candidate(options):
    superpixels = np.zeros((8, 10), np.uint16)
    superpixels[:, 5:] = 1
    proposals = proposals_of(superpixels, 2, [np.array([0])])
    boxes = np.array([[6, 1, 9, 4], [5, 0, 10, 8], [4.5, 0, 10, 8]], np.float32)
    log_probs = random_log_probs(np.random.default_rng(0), 8, 10)
    found = costs_of(proposals, boxes, np.array([1, 2, 3]), log_probs, **options)
    assert [len(costs.candidates) for costs in found] == [0, 0, 1]
    assert_same(found, oracle_costs(proposals, boxes, np.array([1, 2, 3]), log_probs, **options))


@forms
def test_no_proposals_and_no_boxes(options):
    none = proposals_of(np.zeros((4, 5), np.uint16), 1, [])
    log_probs = random_log_probs(np.random.default_rng(0), 4, 5)
    boxes = np.array([[0, 0, 3, 3], [1, 1, 2, 2]], np.float32)
    found = costs_of(none, boxes, np.array([1, 1]), log_probs, **options)
    assert [len(costs.candidates) for costs in found] == [0, 0]
    some = random_proposals(np.random.default_rng(0), 4, 5)
    no_boxes = np.empty((0, 4), np.float32)
    assert costs_of(some, no_boxes, np.empty(0, int), log_probs, **options) == []


@forms
def test_without_a_network_the_overlap_alone_counts(options):
    rng = np.random.default_rng(3)
    proposals = random_proposals(rng, 20, 25)
    boxes = random_boxes(rng, 20, 25, 4)
    class_ids = rng.integers(1, NUM_CLASSES, len(boxes))
    found = costs_of(proposals, boxes, class_ids, None, **options)
    assert_same(found, oracle_costs(proposals, boxes, class_ids, None, **options))
    assert all((costs.regression == 0).all() for costs in found)


@forms
def test_a_uniform_network_orders_candidates_by_overlap_and_rank(options):
    rng = np.random.default_rng(4)
    proposals = random_proposals(rng, 20, 25, num_proposals=60)
    boxes = random_boxes(rng, 20, 25, 4)
    class_ids = rng.integers(1, NUM_CLASSES, len(boxes))
    uniform = np.full((NUM_CLASSES, 20, 25), -np.log(NUM_CLASSES), np.float32)
    constant = np.log(NUM_CLASSES) if options["form"] == "image" else 0.0
    for costs in costs_of(proposals, boxes, class_ids, uniform, **options):
        np.testing.assert_allclose(costs.regression, constant, rtol=1e-6, atol=1e-12)
        by_cost = np.argsort(np.round(costs.total(3.0), 9), kind="stable")
        assert (by_cost == np.argsort(np.round(costs.overlap + costs.prior, 9), kind="stable")).all()


def test_a_network_with_a_zero_score_layer_is_uniform():
    # So overlap alone decides the first assignment, without a special path.
    network = build_network("deeplab_largefov_vgg16", NUM_CLASSES, weights="none").eval()
    image = np.random.default_rng(0).integers(0, 256, (17, 23, 3), np.uint8)
    log_probs = predict_log_probs(network, image, "cpu")
    assert log_probs.shape == (NUM_CLASSES, 17, 23)
    assert (log_probs == log_probs.flat[0]).all()


@forms
def test_superpixel_numbers_carry_no_meaning(options):
    rng = np.random.default_rng(5)
    proposals = random_proposals(rng, 15, 20)
    numbers = rng.permutation(proposals.num_superpixels).astype(np.uint16)
    members = [np.sort(numbers[proposals.members(j)]) for j in range(len(proposals))]
    renamed = proposals_of(numbers[proposals.superpixels], proposals.num_superpixels, members)
    boxes, log_probs = random_boxes(rng, 15, 20, 4), random_log_probs(rng, 15, 20)
    class_ids = rng.integers(1, NUM_CLASSES, len(boxes))
    assert_same(
        costs_of(renamed, boxes, class_ids, log_probs, **options),
        costs_of(proposals, boxes, class_ids, log_probs, **options),
    )


@forms
def test_boxes_are_scored_each_on_its_own(options):
    rng = np.random.default_rng(6)
    proposals, boxes = random_proposals(rng, 15, 20), random_boxes(rng, 15, 20, 4)
    class_ids, log_probs = rng.integers(1, NUM_CLASSES, len(boxes)), random_log_probs(rng, 15, 20)
    together = costs_of(proposals, boxes, class_ids, log_probs, **options)
    for k, costs in enumerate(together):
        alone = costs_of(proposals, boxes[k : k + 1], class_ids[k : k + 1], log_probs, **options)
        assert_same(alone, [costs])


def whole_and_part() -> tuple[Proposals, np.ndarray]:
    """A 4 x 4 object in an 8 x 8 image: proposal 0 is one pixel of it, 1 the object, 2 the object's box and more."""
    superpixels = np.zeros((8, 8), np.uint16)
    superpixels[2:6, 2:6] = 1
    superpixels[3, 3] = 2
    members = [np.array([2]), np.array([1, 2]), np.array([0, 1, 2])]
    return proposals_of(superpixels, 3, members), np.array([[2, 2, 6, 6]], np.float32)


@forms
def test_a_network_that_sees_the_object_makes_the_object_cheapest(options):
    proposals, box = whole_and_part()
    log_probs = np.full((NUM_CLASSES, 8, 8), np.log(0.01), np.float32)
    seen = np.isin(proposals.superpixels, (1, 2))
    log_probs[0], log_probs[3] = np.log(np.where(seen, 0.04, 0.93)), np.log(np.where(seen, 0.93, 0.04))
    (costs,) = costs_of(proposals, box, np.array([3]), log_probs, **options)
    assert costs.total(3.0).argmin() == 1


def test_only_the_literal_form_drifts_to_small_segments_under_a_timid_network():
    # A network that gives every pixel to the background, slightly less so on the object.
    proposals, box = whole_and_part()
    seen = np.isin(proposals.superpixels, (1, 2))
    log_probs = np.full((NUM_CLASSES, 8, 8), np.log(1e-3), np.float32)
    log_probs[0], log_probs[3] = np.log(np.where(seen, 0.96, 0.99)), np.log(np.where(seen, 0.03, 1e-3))
    cheapest = {}
    for form in ("image", "centred"):
        (costs,) = costs_of(proposals, box, np.array([3]), log_probs, form=form, box_margin=None)
        cheapest[form] = int(costs.total(3.0).argmin())
    assert cheapest == {"image": 0, "centred": 1}


def test_the_centred_form_does_not_see_a_bias_of_the_network():
    rng = np.random.default_rng(7)
    proposals, boxes = random_proposals(rng, 15, 20), random_boxes(rng, 15, 20, 4)
    class_ids, log_probs = rng.integers(1, NUM_CLASSES, len(boxes)), random_log_probs(rng, 15, 20)
    biased = log_probs.astype(np.float64)
    biased[0] += 5
    for margin in (None, 0.0):
        options = {"form": "centred", "box_margin": margin}
        for a, b in zip(
            costs_of(proposals, boxes, class_ids, log_probs, **options),
            costs_of(proposals, boxes, class_ids, biased, **options),
            strict=True,
        ):
            np.testing.assert_allclose(a.regression, b.regression, atol=1e-9)


def test_inputs_are_not_changed():
    rng = np.random.default_rng(8)
    proposals, boxes = random_proposals(rng, 10, 10), random_boxes(rng, 10, 10, 2)
    log_probs, class_ids = random_log_probs(rng, 10, 10), rng.integers(1, NUM_CLASSES, len(boxes))
    arrays = [proposals.superpixels, proposals.indices, proposals.boxes, boxes, log_probs, class_ids]
    for array in arrays:
        array.setflags(write=False)
    for options in FORMS:
        costs_of(proposals, boxes, class_ids, log_probs, **options)


@pytest.mark.parametrize(
    "boxes, expected",
    [
        ([[0, 0, 4, 4]], [1.0]),
        ([[4, 0, 8, 4], [5, 5, 6, 6]], [0.0, 0.0]),  # touching is not overlapping
        ([[2, 0, 6, 4]], [8 / 24]),
        ([[3, 3, 3, 3], [10, 10, 0, 0]], [0.0, 0.0]),  # empty boxes
    ],
)
def test_box_iou(boxes, expected):
    np.testing.assert_allclose(box_iou(np.array([0.0, 0, 4, 4]), np.array(boxes)), expected)
