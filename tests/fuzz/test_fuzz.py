"""3,000 damaged files: no crash, no hang, no traceback; what the product wrote never reads as something else."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fuzz import mutators
from tests.fuzz.runner import GOOD, run
from tests.fuzz.targets import TARGETS

NUM_CASES = -(-3000 // len(TARGETS))


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_reads_as_before_or_gives_one_line(name: str) -> None:
    outcomes = list(run(name, range(NUM_CASES)))
    wrong = [outcome for outcome in outcomes if outcome.verdict not in GOOD]
    assert not wrong, "\n\n".join(
        f"{name}, seed {one.seed}, {one.mutator}: {one.verdict}: {one.detail}" for one in wrong[:5]
    )
    assert len(outcomes) == NUM_CASES and sum(outcome.verdict == "refused" for outcome in outcomes) > NUM_CASES / 10


def test_a_mutator_always_changes_something_and_the_same_seed_changes_the_same() -> None:
    for data in (b"a", b'{"a": 1}\n{"b": "x"}\n', bytes(1000)):
        for seed in range(200):
            name, damaged = mutators.damage(data, np.random.default_rng(seed))
            assert damaged != data
            assert (name, damaged) == mutators.damage(data, np.random.default_rng(seed))
