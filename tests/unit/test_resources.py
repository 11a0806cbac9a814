"""Processes fitted to a cluster: they fit at any size, and what can't fit is told instead of waited for."""

import pytest

from boxsup_dist.config import ResourceSettings
from boxsup_dist.errors import SettingError


@pytest.mark.parametrize(("num_cpus", "num_gpus"), [(2, 0), (3, 0), (16, 0), (200, 0), (2, 1), (8, 2), (64, 8)])
def test_resolved_resources_fit_and_leave_a_cpu(num_cpus, num_gpus):
    resources = ResourceSettings().resolve(num_cpus, num_gpus)
    resources.check_room(num_cpus, num_gpus)
    assert resources.num_workers >= 1 and resources.num_actors >= 1
    assert resources.cpus_per_worker > 0 and resources.cpus_per_actor > 0
    assert resources.resolve(num_cpus, num_gpus) == resources
    assert (resources.gpus_per_worker > 0) == (resources.gpus_per_actor > 0) == (num_gpus > 0)


def test_numbers_that_the_user_gave_stay():
    given = ResourceSettings(num_workers=3, cpus_per_worker=0.1, num_actors=5, cpus_per_actor=0.05)
    assert given.resolve(2, 0) == given


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
        resources.check_room(2, 0)


def test_actors_alone_may_take_every_cpu():
    resources = ResourceSettings(num_workers=9, num_actors=8)
    resources.check_room(2, 0, with_training=False)
    with pytest.raises(SettingError, match="cpus_per_actor"):
        ResourceSettings(num_workers=1, num_actors=9).check_room(2, 0, with_training=False)
