"""Processes fitted to a cluster: what is set stays or is refused, what is not set fits the machine."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest

from boxsup_dist.config import Node, Resources, ResourceSettings
from boxsup_dist.errors import SettingError

SIZES = [(2, 0), (3, 0), (16, 0), (200, 0), (2, 1), (8, 2), (64, 8)]
CLUSTERS = [
    [(16, 0)] * 8,
    [(2, 0)] * 3,
    [(1, 0)] * 5 + [(2, 0)],
    [(0, 0), (4, 0), (4, 0)],
    [(4, 0), (8, 1), (8, 4)],
    [(2, 1), (62, 0)],
    [(4, 8), (60, 0)],
    [(16, 8)] * 64,
]
# For each setting that is filled: not set, and values that a user may set.
GRID = {
    "num_workers": (None, 1, 2),
    "num_actors": (None, 1, 3),
    "cpus_per_worker": (None, 0.1, 1.5),
    "cpus_per_actor": (None, 0.2),
    "gpus_per_worker": (None, 0.0, 0.3, 1.0),
    "gpus_per_actor": (None, 0.0, 0.25),
}


def machine(num_cpus: int, num_gpus: int) -> list[Node]:
    return [Node(num_cpus, num_gpus)]


def set_values(settings: ResourceSettings) -> dict[str, object]:
    return {name: value for name, value in asdict(settings).items() if value is not None}


def assert_kept(settings: ResourceSettings, found: Resources) -> None:
    given = set_values(settings)
    assert {name: value for name, value in asdict(found).items() if name in given} == given


@pytest.mark.parametrize("sizes", [[size] for size in SIZES] + CLUSTERS, ids=str)
def test_what_is_filled_in_fits_wherever_ray_places_it(sizes):
    nodes = [Node(*size) for size in sizes]
    has_gpus = any(node.gpus for node in nodes)
    for changes in ({}, {"gpus_per_worker": 0.0}, {"gpus_per_actor": 0.0}, {"num_workers": 1}, {"num_actors": 1}):
        settings = ResourceSettings(**changes)
        resources = settings.resolve(nodes)
        resources.check_room(nodes)
        resources.check_room(nodes, with_training=False)
        assert resources.num_workers >= 1 and resources.num_actors >= 1
        assert resources.cpus_per_worker > 0 and resources.cpus_per_actor > 0
        assert resources.resolve(nodes) == resources
        assert (resources.gpus_per_worker > 0) == (has_gpus and "gpus_per_worker" not in changes)


def test_a_cluster_of_cpus_is_used_by_more_workers_but_not_by_more_than_a_batch_has_images():
    cluster = [Node(16)] * 8
    assert ResourceSettings().resolve(cluster).num_workers == 32
    assert ResourceSettings().resolve(cluster, 20).num_workers == 20
    assert ResourceSettings().resolve(cluster, 20).threads_per_worker == 1, "threads would change the sums"
    assert ResourceSettings().resolve([Node(64, 8)], 5).num_workers == 5
    assert ResourceSettings(num_workers=50).resolve(cluster, 20).num_workers == 50, "what is set stays"


@pytest.mark.parametrize(("num_cpus", "num_gpus"), [(2, 0), (16, 0), (4, 1), (16, 2), (64, 8)])
def test_what_is_set_stays_and_what_is_not_is_filled(num_cpus, num_gpus):
    """Every combination of set and not set: set values are unchanged, or the combination is refused by name."""
    num_resolved = 0
    for values in itertools.product(*GRID.values()):
        settings = ResourceSettings(**dict(zip(GRID, values, strict=True)))
        settings.check()
        try:
            found = settings.resolve(machine(num_cpus, num_gpus))
        except SettingError as error:
            name = error.field.removeprefix("resources.")
            assert name in ("gpus_per_worker", "gpus_per_actor") and num_gpus > 0
            assert error.value == getattr(settings, name) is not None, "it names what was set"
            continue
        num_resolved += 1
        assert_kept(settings, found)
        assert None not in asdict(found).values()
        for name in ("gpus_per_worker", "gpus_per_actor"):
            # The GPUs of a cluster are used unless the user says otherwise.
            if getattr(settings, name) is None:
                assert (getattr(found, name) > 0) == (num_gpus > 0)
    assert num_resolved > 400


def test_shares_that_are_filled_fit_the_gpus():
    """A GPU holds one worker and its part of the actors, whatever one of the two shares is set to."""
    for num_gpus, num_actors in itertools.product((1, 2, 8), (None, 1, 3, 8, 16)):
        for given in ({"gpus_per_worker": 0.51}, {"gpus_per_worker": 0.9}, {"gpus_per_actor": 0.02}, {}):
            found = ResourceSettings(num_actors=num_actors, **given).resolve(machine(64, num_gpus))
            actors_per_gpu = -(-found.num_actors // num_gpus)
            assert found.gpus_per_worker + actors_per_gpu * found.gpus_per_actor <= 1 + 1e-9
            found.check_room(machine(64, num_gpus))


def test_what_a_user_sets_on_a_gpu_machine_is_what_the_workers_get():
    whole = ResourceSettings(gpus_per_worker=1.0, gpus_per_actor=0.0).resolve(machine(16, 2))
    assert (whole.num_workers, whole.gpus_per_worker, whole.gpus_per_actor) == (2, 1.0, 0.0)
    numbered = ResourceSettings(num_workers=2).resolve(machine(16, 2))
    assert (numbered.num_workers, numbered.gpus_per_worker) == (2, 0.6)
    on_cpu = ResourceSettings(gpus_per_worker=0.0).resolve(machine(16, 2))
    assert (on_cpu.num_workers, on_cpu.gpus_per_worker, on_cpu.num_actors, on_cpu.gpus_per_actor) == (4, 0.0, 2, 1.0)
    with pytest.raises(SettingError, match=r"resources\.gpus_per_worker; found: 1\.0; .*gpus_per_actor too"):
        ResourceSettings(gpus_per_worker=1.0).resolve(machine(16, 2))


def test_numbers_that_the_user_gave_stay():
    given = ResourceSettings(num_workers=3, cpus_per_worker=0.1, num_actors=5, cpus_per_actor=0.05)
    assert_kept(given, given.resolve(machine(2, 0)))


def test_resources_without_a_gpu():
    found = ResourceSettings().resolve(machine(2, 0))
    assert (found.num_workers, found.num_actors) == (2, 2)
    assert (found.gpus_per_worker, found.gpus_per_actor) == (0, 0)
    assert ResourceSettings().resolve(machine(16, 0)) == Resources(
        num_workers=4, num_actors=16, cpus_per_worker=0.25, cpus_per_actor=0.25, gpus_per_worker=0.0, gpus_per_actor=0.0
    )


def test_resources_with_gpus():
    found = ResourceSettings().resolve(machine(16, 8))
    assert (found.num_workers, found.num_actors) == (8, 8)
    assert (found.gpus_per_worker, found.gpus_per_actor) == (0.6, 0.4)
    assert (found.cpus_per_worker, found.cpus_per_actor) == (0.5, 0.5)
    assert ResourceSettings().resolve(machine(64, 2)).cpus_per_worker == 1.0


@pytest.mark.parametrize("num_cpus", [2, 3, 4, 8, 16, 96])
@pytest.mark.parametrize("num_gpus", [0, 1, 2, 8])
def test_resolved_resources_fit_and_leave_data_tasks_a_cpu(num_cpus, num_gpus):
    found = ResourceSettings().resolve(machine(num_cpus, num_gpus))
    reserved = found.num_workers * found.cpus_per_worker + found.num_actors * found.cpus_per_actor
    assert reserved <= num_cpus / 2 and num_cpus - reserved >= 1
    assert found.num_workers * found.gpus_per_worker + found.num_actors * found.gpus_per_actor <= num_gpus
    found.check()


def test_given_resources_are_kept():
    given = ResourceSettings(num_workers=3, cpus_per_worker=2.0, num_actors=5, gpus_per_actor=0.1)
    for size in ((2, 0), (16, 8)):
        assert_kept(given, given.resolve(machine(*size)))
    partly = ResourceSettings(num_workers=3).resolve(machine(16, 8))
    assert (partly.num_workers, partly.gpus_per_worker, partly.num_actors, partly.gpus_per_actor) == (3, 0.6, 8, 0.4)


@pytest.mark.parametrize(
    ("resources", "match"),
    [
        (ResourceSettings(num_workers=2, num_actors=3), r"data tasks; .*cpus_per_worker.*2 x 0.25 \+ 3 x 0.25 CPUs"),
        (ResourceSettings(num_actors=1, gpus_per_actor=0.5), r"actor 1 of 1 .*gpus_per_actor; found: '.* and 0.5 GPU'"),
        (ResourceSettings(num_workers=1, gpus_per_worker=1.5), r"gpus_per_worker; found: 1.5; .*one GPU"),
        (ResourceSettings(num_workers=1, num_actors=1, min_workers=2), r"min_workers; found: 2; .*num_workers = 1"),
    ],
)
def test_more_than_there_is_names_the_setting(resources, match):
    with pytest.raises(SettingError, match=match):
        resources.check()
        resources.resolve(machine(2, 0)).check_room(machine(2, 0))


def test_a_run_with_min_workers_starts_on_a_part_of_its_nodes():
    """It is checked with as many workers as start there: Ray Train takes all that fit."""
    settings = ResourceSettings(num_workers=4, min_workers=1, cpus_per_worker=1.6, num_actors=2, cpus_per_actor=0.2)

    def check(**changes) -> None:
        replace(settings, **changes).resolve(machine(3, 0)).check_room([Node(3)])

    check()
    for changes, match in (
        ({"min_workers": 0}, r"worker 2 of 4 may wait forever"),
        ({"min_workers": 2}, r"worker 2 of 2 may wait forever"),
        ({"cpus_per_worker": 1.5}, r"actor 1 of 2 may wait forever.*and 2 train workers reserve 1.5 CPUs each"),
    ):
        with pytest.raises(SettingError, match=match):
            check(**changes)


def test_two_workers_on_one_gpu_are_refused():
    """NCCL takes one rank per GPU: the run would end in its first step."""
    with pytest.raises(SettingError, match=r"share a GPU; .*num_workers; found: 2; expected: <= 1.*gpus_per_worker 0"):
        ResourceSettings(num_workers=2, gpus_per_worker=0.25).resolve(machine(8, 1)).check_room(machine(8, 1))
    ResourceSettings(num_workers=2, gpus_per_worker=0.0).resolve(machine(8, 1)).check_room(machine(8, 1))


def test_actors_alone_may_take_every_cpu():
    resources = ResourceSettings(num_workers=9, num_actors=8).resolve(machine(2, 0))
    resources.check_room(machine(2, 0), with_training=False)
    with pytest.raises(SettingError, match="cpus_per_actor"):
        ResourceSettings(num_workers=1, num_actors=9).resolve(machine(2, 0)).check_room(
            machine(2, 0), with_training=False
        )


# -- by node -----------------------------------------------------------------------------------------------------------


def set_resources(workers: int, worker: tuple[float, float], actors: int, actor: tuple[float, float]) -> Resources:
    names = ("num_workers", "cpus_per_worker", "gpus_per_worker", "num_actors", "cpus_per_actor", "gpus_per_actor")
    return Resources(**dict(zip(names, (workers, *worker, actors, *actor), strict=True)))


@pytest.mark.parametrize(
    ("nodes", "resources", "match"),
    [
        (
            [Node(2)] * 3,
            set_resources(1, (3, 0), 1, (0.5, 0)),
            r"train worker 1 of 1 .*found: '3 CPUs'.*3 x \(2 CPUs\)",
        ),
        ([Node(2)] * 3, set_resources(3, (1.5, 0), 2, (1, 0)), r"actor 1 of 2 .*3 train workers reserve 1.5 CPUs each"),
        ([Node(8, 1)] * 2, set_resources(2, (1, 0.6), 2, (1, 0.6)), r"actor 1 of 2 .*'1 CPU and 0.6 GPU'.*1 GPU"),
        ([Node(8, 1)], set_resources(1, (1, 0.6), 2, (1, 0.4)), r"actor 2 of 2 .*resources\.num_actors or share"),
        # Ray packs both workers onto one node, and then only one actor finds 3 CPUs.
        ([Node(4)] * 2, set_resources(2, (1, 0), 2, (3, 0)), "actor 2 of 2"),
        ([Node(1)] * 4, set_resources(2, (0.25, 0), 2, (0.25, 0)), "no node with a whole CPU for the data tasks"),
    ],
)
def test_what_fits_the_cluster_but_no_node_is_refused_by_name(nodes, resources, match):
    with pytest.raises(SettingError, match=match):
        resources.check_room(nodes)


def test_shares_that_fill_a_gpu_exactly_fit():
    nodes = [Node(8, 1)] * 2
    set_resources(2, (1, 0.6), 2, (1, 0.4)).check_room(nodes)
    set_resources(1, (1, 0.3), 2, (1, 0.7)).check_room([*nodes[:1], Node(8, 2)])


def test_shares_with_which_ray_would_put_two_workers_on_one_gpu_are_refused():
    for share in (0.5, 0.3):
        with pytest.raises(SettingError, match=r"share a GPU; .*gpus_per_worker; found: 0\.\d; expected: above 0\.5"):
            set_resources(2, (1, share), 2, (1, 0.2)).check_room([Node(8, 2)])
    set_resources(1, (1, 0.5), 2, (1, 0.25)).check_room([Node(8, 1)])
    with pytest.raises(SettingError, match=r"gpus_per_actor; found: 0\.5; .*more than 0\.5 of each GPU to a worker"):
        ResourceSettings(gpus_per_actor=0.5).resolve([Node(8, 2)])


Free = list[tuple[int, list[int]]]  # of each node: CPUs, and each of its GPUs, in tenths


def placements(free: Free, share: tuple[int, int]) -> Iterator[Free]:
    """Everything that may be free after one more process has been placed."""
    cpus, gpus = share
    for i, (node_cpus, node_gpus) in enumerate(free):
        if node_cpus < cpus:
            continue
        for j in range(len(node_gpus)) if gpus else (None,):
            if j is not None and node_gpus[j] < gpus:
                continue
            left = [size - gpus * (k == j) for k, size in enumerate(node_gpus)]
            yield [*free[:i], (node_cpus - cpus, left), *free[i + 1 :]]


def always_fit(free: Free, shares: list[tuple[int, int]]) -> bool:
    """Whether all processes find room, whatever node and GPU each of them is given: every way is tried."""
    if not shares:
        return True
    ways = {str(sorted(way)): way for way in placements(free, shares[0])}
    return bool(ways) and all(always_fit(way, shares[1:]) for way in ways.values())


def test_what_passes_is_placed_in_every_way_and_what_fits_in_no_way_is_refused():
    """Every way of placing the processes of 1,500 small clusters, compared with check_room."""
    rng = random.Random(0)
    passed = refused = too_strict = 0
    for _ in range(1500):
        with_gpus = rng.random() < 0.6
        sizes = [(rng.randint(1, 4), rng.randint(0, 2) * with_gpus) for _ in range(rng.randint(1, 3))]
        worker, actor = ((rng.randint(1, 25), rng.choice((0, 3, 4, 6, 7, 10)) * with_gpus) for _ in range(2))
        workers, actors = rng.randint(1, 3), rng.randint(1, 3)
        if workers > 1 and 0 < worker[1] <= 5:
            continue
        in_tenths: Free = [(10 * cpus, [10] * gpus) for cpus, gpus in sizes]
        fits = always_fit(in_tenths, [worker] * workers + [actor] * actors + [(10, 0)])
        resources = set_resources(workers, (worker[0] / 10, worker[1] / 10), actors, (actor[0] / 10, actor[1] / 10))
        try:
            resources.check_room([Node(*size) for size in sizes])
        except SettingError:
            refused += 1
            too_strict += fits
            continue
        assert fits, (sizes, resources)
        passed += 1
    assert passed > 100 and refused > 100
    assert too_strict < 0.01 * passed, "a price that shows that all fits is not always found"
