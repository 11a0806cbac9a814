"""Which checkpoint of a run a command uses: the newest, the best on the validation records, or one that it names."""

from __future__ import annotations

from boxsup_dist.errors import CheckpointError
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.runs.history import best_epoch, read_history
from boxsup_dist.runs.layout import RunFiles

BEST = "best"


def find_checkpoint(run_dir: str, choice: str | None) -> str:
    """URI of a checkpoint.

    Args:
        run_dir: Run directory.
        choice: "best", the folder of a checkpoint, or a run directory for its newest one. None: the newest of the run.

    Raises:
        CheckpointError: There is no such checkpoint.
    """
    return best_checkpoint(run_dir) if choice == BEST else checkpoint.newest(choice or run_dir)


def best_checkpoint(run_dir: str) -> str:
    """URI of the checkpoint at the end of the epoch that is the best on the validation records: see `best_epoch`.

    Raises:
        CheckpointError: No epoch was evaluated, or the checkpoint is not there.
    """
    files = RunFiles(run_dir)
    number = best_epoch(read_history(run_dir))
    if number is None:
        raise CheckpointError(
            "no checkpoint is the best: no epoch of the run was evaluated",
            file=files.history,
            field="mean_iou or box_score",
            expected="a run with validation records (--val-records); without --checkpoint its newest one is used",
        )
    uri = storage.join(files.checkpoints, checkpoint.checkpoint_name(number, 0))
    if not storage.exists(storage.join(uri, "manifest.json")):
        raise CheckpointError(
            f"the checkpoint of the best epoch, {number}, is not there",
            file=uri,
            expected="a run of this version, which keeps it; without --checkpoint the newest one is used",
        )
    return uri
