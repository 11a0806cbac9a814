"""Processes fitted to a cluster: what is set stays or is refused, what is not set fits the machine."""

import itertools
from dataclasses import asdict

import pytest

from boxsup_dist.config import Resources, ResourceSettings
from boxsup_dist.errors import SettingError

SIZES = [(2, 0), (3, 0), (16, 0), (200, 0), (2, 1), (8, 2), (64, 8)]
# For each setting that is filled: not set, and values that a user may set.
GRID = {
    "num_workers": (None, 1, 2),
    "num_actors": (None, 1, 3),
    "cpus_per_worker": (None, 0.1, 1.5),
    "cpus_per_actor": (None, 0.2),
    "gpus_per_worker": (None, 0.0, 0.3, 1.0),
    "gpus_per_actor": (None, 0.0, 0.25),
}


def set_values(settings: ResourceSettings) -> dict[str, object]:
    return {name: value for name, value in asdict(settings).items() if value is not None}


def assert_kept(settings: ResourceSettings, found: Resources) -> None:
    given = set_values(settings)
    assert {name: value for name, value in asdict(found).items() if name in given} == given


@pytest.mark.parametrize(("num_cpus", "num_gpus"), SIZES)
def test_resolved_resources_fit_and_leave_a_cpu(num_cpus, num_gpus):
    resources = ResourceSettings().resolve(num_cpus, num_gpus)
    resources.check_room(num_cpus, num_gpus)
    assert resources.num_workers >= 1 and resources.num_actors >= 1
    assert resources.cpus_per_worker > 0 and resources.cpus_per_actor > 0
    assert resources.resolve(num_cpus, num_gpus) == resources
    assert (resources.gpus_per_worker > 0) == (resources.gpus_per_actor > 0) == (num_gpus > 0)


@pytest.mark.parametrize(("num_cpus", "num_gpus"), [(2, 0), (16, 0), (4, 1), (16, 2), (64, 8)])
def test_what_is_set_stays_and_what_is_not_is_filled(num_cpus, num_gpus):
    """Every combination of set and not set: set values are unchanged, or the combination is refused by name."""
    num_resolved = 0
    for values in itertools.product(*GRID.values()):
        settings = ResourceSettings(**dict(zip(GRID, values, strict=True)))
        settings.check()
        try:
            found = settings.resolve(num_cpus, num_gpus)
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
        for given in ({"gpus_per_worker": 0.3}, {"gpus_per_worker": 0.9}, {"gpus_per_actor": 0.05}, {}):
            found = ResourceSettings(num_actors=num_actors, **given).resolve(64, num_gpus)
            actors_per_gpu = -(-found.num_actors // num_gpus)
            assert found.gpus_per_worker + actors_per_gpu * found.gpus_per_actor <= 1 + 1e-9
            found.check_room(64, num_gpus)


def test_what_a_user_sets_on_a_gpu_machine_is_what_the_workers_get():
    whole = ResourceSettings(gpus_per_worker=1.0, gpus_per_actor=0.0).resolve(16, 2)
    assert (whole.num_workers, whole.gpus_per_worker, whole.gpus_per_actor) == (2, 1.0, 0.0)
    numbered = ResourceSettings(num_workers=2).resolve(16, 2)
    assert (numbered.num_workers, numbered.gpus_per_worker) == (2, 0.5)
    on_cpu = ResourceSettings(gpus_per_worker=0.0).resolve(16, 2)
    assert (on_cpu.num_workers, on_cpu.gpus_per_worker, on_cpu.num_actors, on_cpu.gpus_per_actor) == (4, 0.0, 2, 1.0)
    with pytest.raises(SettingError, match=r"resources\.gpus_per_worker; found: 1\.0; .*gpus_per_actor too"):
        ResourceSettings(gpus_per_worker=1.0).resolve(16, 2)


def test_numbers_that_the_user_gave_stay():
    given = ResourceSettings(num_workers=3, cpus_per_worker=0.1, num_actors=5, cpus_per_actor=0.05)
    assert_kept(given, given.resolve(2, 0))


def test_resources_without_a_gpu():
    found = ResourceSettings().resolve(2, 0)
    assert (found.num_workers, found.num_actors) == (2, 2)
    assert (found.gpus_per_worker, found.gpus_per_actor) == (0, 0)
    assert ResourceSettings().resolve(16, 0) == Resources(
        num_workers=4, num_actors=16, cpus_per_worker=0.25, cpus_per_actor=0.25, gpus_per_worker=0.0, gpus_per_actor=0.0
    )


def test_resources_with_gpus():
    found = ResourceSettings().resolve(16, 8)
    assert (found.num_workers, found.num_actors) == (8, 8)
    assert (found.gpus_per_worker, found.gpus_per_actor) == (0.5, 0.5)
    assert (found.cpus_per_worker, found.cpus_per_actor) == (0.5, 0.5)
    assert ResourceSettings().resolve(64, 2).cpus_per_worker == 1.0


@pytest.mark.parametrize("num_cpus", [2, 3, 4, 8, 16, 96])
@pytest.mark.parametrize("num_gpus", [0, 1, 2, 8])
def test_resolved_resources_fit_and_leave_data_tasks_a_cpu(num_cpus, num_gpus):
    found = ResourceSettings().resolve(num_cpus, num_gpus)
    reserved = found.num_workers * found.cpus_per_worker + found.num_actors * found.cpus_per_actor
    assert reserved <= num_cpus / 2 and num_cpus - reserved >= 1
    assert found.num_workers * found.gpus_per_worker + found.num_actors * found.gpus_per_actor <= num_gpus
    found.check()


def test_given_resources_are_kept():
    given = ResourceSettings(num_workers=3, cpus_per_worker=2.0, num_actors=5, gpus_per_actor=0.1)
    for size in ((2, 0), (16, 8)):
        assert_kept(given, given.resolve(*size))
    partly = ResourceSettings(num_workers=3).resolve(16, 8)
    assert (partly.num_workers, partly.gpus_per_worker, partly.num_actors, partly.gpus_per_actor) == (3, 0.5, 8, 0.5)


@pytest.mark.parametrize(
    ("resources", "match"),
    [
        (ResourceSettings(num_workers=2, num_actors=3), r"cpus_per_worker.*2 x 0.25 \+ 3 x 0.25 = 1.25 cpus.*<= 1"),
        (ResourceSettings(num_workers=1, num_actors=1, gpus_per_actor=0.5), r"gpus_per_worker.*0.5 gpus.*<= 0"),
        (ResourceSettings(num_workers=1, num_actors=1, min_workers=2), r"min_workers; found: 2; .*num_workers = 1"),
    ],
)
def test_more_than_there_is_names_the_setting(resources, match):
    with pytest.raises(SettingError, match=match):
        resources.resolve(2, 0).check_room(2, 0)


def test_two_workers_on_one_gpu_are_refused():
    """NCCL takes one rank per GPU: the run would end in its first step."""
    with pytest.raises(SettingError, match=r"share a GPU; .*num_workers; found: 2; expected: <= 1.*gpus_per_worker 0"):
        ResourceSettings(num_workers=2, gpus_per_worker=0.25).resolve(8, 1).check_room(8, 1)
    ResourceSettings(num_workers=2, gpus_per_worker=0.0).resolve(8, 1).check_room(8, 1)


def test_actors_alone_may_take_every_cpu():
    resources = ResourceSettings(num_workers=9, num_actors=8).resolve(2, 0)
    resources.check_room(2, 0, with_training=False)
    with pytest.raises(SettingError, match="cpus_per_actor"):
        ResourceSettings(num_workers=1, num_actors=9).resolve(2, 0).check_room(2, 0, with_training=False)
