"""Real Ray: the labels table equals the in-process choice for any number of actors, also after an actor died."""

import os
from functools import partial
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import torch
from ray.exceptions import WorkerCrashedError

from boxsup_dist.assignment.assign import assign_row_group, choose_row_group, decode_row_group, score_row_group
from boxsup_dist.assignment.reassign import reassign
from boxsup_dist.config import AssignmentSettings
from boxsup_dist.data.labels import LabelsTable, labels_table, publish, store_labels
from boxsup_dist.data.sources import Mixture, Source, make_units
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.errors import LostWorkError, TableError
from boxsup_dist.model.inference import class_scores
from boxsup_dist.model.networks import SegmentationNetwork
from tests.distributed import tiny

SEED = 11
# (epoch, settings): the warm-up draws by overlap alone, later epochs ask the network
CASES = [
    (0, tiny.ASSIGNMENT),
    (1, tiny.ASSIGNMENT),
    (1, AssignmentSettings(form="image", regression_weight=3.0, top_k=5)),
]


class MortalNetwork(torch.nn.Module):
    """The tiny network; the first process that predicts dies before it answers."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.inner = tiny.build_network()
        self.marker = Path(marker)

    def load_state_dict(self, state, *args, **kwargs):
        return self.inner.load_state_dict(state)

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def score_map(self, images: torch.Tensor) -> torch.Tensor:
        if not self.marker.exists():
            self.marker.touch()
            os._exit(1)
        return self.inner.score_map(images)

    def upsample(self, *args) -> torch.Tensor:
        return self.inner.upsample(*args)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return tiny.write_tables(tmp_path_factory.mktemp("tiny"), mask=tiny.POISON)


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    """Random weights in the score layer too, so that the classes differ."""
    torch.manual_seed(0)
    network = tiny.build_network().eval()
    torch.nn.init.normal_(network.score.weight, std=1.0)
    return network


def expected_labels(tables, network, epoch: int, settings: AssignmentSettings, folder: Path) -> LabelsTable:
    records, proposals, val = tables
    when = {"seed": SEED, "epoch": epoch}
    parts = []
    for where in records.row_groups():
        rows = records.read(where), proposals.read(where)
        if epoch == 0:
            parts.append(assign_row_group(None, *rows, settings, **when))
        else:
            scores_of = partial(class_scores, network, normalise=settings.form == "image")
            sums = score_row_group(scores_of, decode_row_group(*rows), settings)
            parts.append(choose_row_group(sums, *rows, settings, **when))
    return store_labels(str(folder / "expected"), [*parts, *(labels_table([]) for _ in val.row_groups())])


def reassigned(pool: NetworkPool, mixture: Mixture, folder: Path, **options) -> LabelsTable:
    uri = str(folder / "labels")
    return publish(uri, reassign(pool, mixture, uri=uri, **options), len(mixture.units))


def make_mixture(tables, settings: AssignmentSettings) -> Mixture:
    records, proposals, val = tables
    # The second source has no box to assign: its units take part with empty labels.
    sources = [Source(records, "box", proposals), Source(val, "rectangles")]
    return Mixture(make_units(sources), settings, tiny.AUGMENT, SEED)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the members have
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("num_actors", [1, 2, 4])
def test_the_labels_are_the_choice_made_in_process(ray_local, one_thread, tables, network, tmp_path, num_actors):
    pool = NetworkPool(tiny.build_network, num_actors=num_actors, num_cpus=0.25)
    records, _, val = tables
    weights = ray.put(network.state_dict())
    for epoch, settings in CASES:
        expected = expected_labels(tables, network, epoch, settings, tmp_path)
        # One of the pools leaves the choice to tasks, as a pool on GPUs does.
        options = {"weights": weights, "epoch": epoch, "choose_in_tasks": num_actors == 2}
        labels = reassigned(pool, make_mixture(tables, settings), tmp_path, **options)
        assert labels.fingerprint == expected.fingerprint and labels.summary() == expected.summary()
        assert str(labels.read_all().to_pylist()) == str(expected.read_all().to_pylist())
        num_boxes = sum(len(ids) for w in records.row_groups() for ids in records.read(w)["class_ids"].to_pylist())
        assert labels.num_rows == num_boxes
        assert labels.num_units == len(records.row_groups()) + len(val.row_groups())
    pool.close()


def test_an_actor_that_dies_half_way_changes_nothing(ray_local, one_thread, tables, network, tmp_path):
    marker = tmp_path / "died"
    pool = NetworkPool(partial(MortalNetwork, str(marker)), num_actors=2, num_cpus=0.25)
    weights = ray.put(network.state_dict())
    options = {"weights": weights, "epoch": 1, "choose_in_tasks": True}
    labels = reassigned(pool, make_mixture(tables, tiny.ASSIGNMENT), tmp_path, **options)
    pool.close()
    assert marker.exists()
    assert labels.fingerprint == expected_labels(tables, network, 1, tiny.ASSIGNMENT, tmp_path).fingerprint


class LosingPool:
    """Loses every unit."""

    def map(self, function, units, *, on_lost, **options):
        yield from (on_lost(unit, WorkerCrashedError()) for unit in units)


def test_images_that_end_every_process_are_named(tables, tmp_path):
    with pytest.raises(LostWorkError, match=r"^a row group ended its process 4 times: native code crashed") as caught:
        reassigned(LosingPool(), make_mixture(tables, tiny.ASSIGNMENT), tmp_path, weights=None, epoch=1)
    records = tables[0]
    ids = records.read(records.row_groups()[0])["image_id"].to_pylist()
    assert caught.value.file == f"{records.uri}/part-00000.parquet"
    assert (caught.value.field, caught.value.value) == ("row group 0, images", f"{ids[0]} to {ids[-1]}")


def test_the_network_decides_after_the_warm_up(one_thread, tables, network, tmp_path):
    labels = [expected_labels(tables, network, epoch, settings, tmp_path).read_all() for epoch, settings in CASES]
    columns = ["proposal_index", "rank"]
    assert all(not a.select(columns).equals(b.select(columns)) for a, b in pairwise(labels))
    assert pa.compute.max(labels[2]["rank"]).as_py() == 4
    crowd = labels[0].filter(pa.compute.equal(labels[0]["image_id"], "tiny/train_03")).to_pylist()[0]
    assert crowd["proposal_index"] == crowd["rank"] == -1 and crowd["superpixel_ids"] == []


def test_proposals_of_other_records_are_refused(tables):
    _, proposals, val = tables
    with pytest.raises(TableError, match="made from other records"):
        Source(val, "box", proposals)
