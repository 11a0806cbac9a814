"""The trainings of the drills: their command, how far they are, and how they compare with the undisturbed one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from boxsup_dist.data.labels import open_labels
from boxsup_dist.io import storage
from boxsup_dist.model.checkpoint import checkpoint_name
from boxsup_dist.runs.history import read_history
from boxsup_dist.runs.layout import RunFiles

GLOBAL_BATCH_SIZE, EPOCHS = 4, 3
CHECKPOINT_EVERY_STEPS = 4
CHOICES = ["image_id", "box_index", "class_id", "proposal_index", "superpixel_ids", "undecided_ids", "rank"]
WORKER_CPUS, ACTOR_CPUS = 1.6, 0.2  # a node of the cluster has room for one worker
LOSS_TOLERANCE = 1e-3  # relative, where the number of workers changed: gradients are added up in another order
BEGINS = re.compile(r"training (?:begins|continues at epoch (\d+), after (\d+) steps), workers: (\d+)")


@dataclass(frozen=True)
class Outcome:
    """The effect of a fault on a run."""

    drill: str
    fault: str
    continues_after_s: float  # from the fault to the first line that reports work again
    continues_from: str  # epoch and step; what was trained before is not trained again
    workers: str  # before -> after
    labels: str
    losses: str


def train_words(out: str, name: str, min_workers: int = 0, max_failures: int = 3, epochs: int = EPOCHS) -> list[str]:
    """The training command, as a user would type it."""
    data = storage.join(out, "data")
    settings = {
        "run-dir": storage.join(out, name),
        "records": storage.join(data, "records"),
        "proposals": storage.join(data, "proposals"),
        "supervision": "box",
        "network.name": "timm:test_resnet",
        "network.weights": "none",
        "assignment.warmup-epochs": 1,
        "optimizer.epochs": epochs,
        "optimizer.global-batch-size": GLOBAL_BATCH_SIZE,
        "augment.crop-height-px": 65,
        "augment.crop-width-px": 65,
        "resources.num-workers": 2,
        "resources.min-workers": min_workers,
        "resources.max-failures": max_failures,
        "resources.cpus-per-worker": WORKER_CPUS,
        "resources.num-actors": 2,
        "resources.cpus-per-actor": ACTOR_CPUS,
        "resources.stream-tasks-per-worker": 1,
        "checkpoint-every-steps": CHECKPOINT_EVERY_STEPS,
    }
    return ["jobs.train", "mini", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]


def reached(run_dir: str, epoch: int, step: int) -> Callable[[], bool]:
    """A function that says whether the run has this checkpoint."""
    manifest = Path(storage.join(RunFiles(run_dir).checkpoints, checkpoint_name(epoch, step), "manifest.json"))
    return manifest.exists


def compare(
    out: str, name: str, same_workers: bool, reference: str = "undisturbed", epochs: int = EPOCHS
) -> dict[str, str]:
    """The fields `labels` and `losses` of an Outcome: how the run compares with the undisturbed one."""
    ours, theirs = (storage.join(out, each) for each in (name, reference))
    pairs = [[RunFiles(each).labels(epoch) for each in (ours, theirs)] for epoch in range(1, epochs + 1)]
    if same_workers:
        prints = [[open_labels(uri).fingerprint for uri in pair] for pair in pairs]
        same = "same bytes" if all(a == b for a, b in prints) else None
    else:  # costs have the last digits of other sums
        chosen = [[open_labels(uri).read_all(CHOICES) for uri in pair] for pair in pairs]
        same = "same choices" if all(a.equals(b) for a, b in chosen) else None
    curves = [[entry.train_loss or 0.0 for entry in read_history(each).values()] for each in (ours, theirs)]
    apart = max(abs(a - b) / b for a, b in zip(*curves, strict=True))
    good = apart == 0 if same_workers else apart < LOSS_TOLERANCE
    losses = "same bits" if apart == 0 else f"{apart:.1e} apart"
    return {"labels": same or "OTHER LABELS", "losses": losses if good else losses.upper()}
