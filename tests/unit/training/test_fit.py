"""What Ray Train starts besides the workers."""

from __future__ import annotations

import ray.train
from ray.train.torch import TorchTrainer

from boxsup_dist.training import fit


def test_the_trainer_starts_no_process_that_serves_no_run(tmp_path):
    """A callback that Ray renames would come back unseen: the names are those that Ray has."""

    def names(kind: type) -> list[str]:
        run = ray.train.RunConfig(storage_path=str(tmp_path))
        return [type(each).__name__ for each in kind(print, run_config=run)._create_default_callbacks()]

    theirs, ours = names(TorchTrainer), names(fit._Trainer)
    assert set(fit.UNUSED_CALLBACKS) <= set(theirs)
    assert ours == [name for name in theirs if name not in fit.UNUSED_CALLBACKS]
    assert {"BackendSetupCallback", "UserCallbackHandler"} <= set(ours)
