"""What a person reads for the keys of a run's history."""

from __future__ import annotations

# Metric of an epoch -> words with the unit, and the factor from the value to that unit.
METRICS: dict[str, tuple[str, float]] = {
    "epoch": ("epoch", 1),
    "train_loss": ("training loss", 1),
    "mean_iou": ("mean IoU on the validation images (%)", 1),
    "box_score": ("box score on the validation images (%)", 1),
    "box_iou": ("IoU of tight boxes with the validation boxes (%)", 1),
    "box_recall": ("validation boxes found at IoU 0.5 (%)", 1),
    "outside_share": ("predicted pixels outside every box (%)", 100),
    "label_mean_iou": ("mean IoU of the label maps (%)", 1),
    "label_recall": ("recall of objects in the label maps (%)", 1),
    "label_precision": ("precision of objects in the label maps (%)", 1),
    "trained_label_mean_iou": ("mean IoU of the labels that are trained on (%)", 1),
    "trained_label_recall": ("recall of objects in the labels that are trained on (%)", 1),
    "trained_label_precision": ("precision of objects in the labels that are trained on (%)", 1),
    "label_ignored_share": ("pixels of the label maps that are not trained on (%)", 100),
    "foreground_share": ("predicted foreground (%)", 100),
    "label_foreground_share": ("foreground of the label maps (%)", 100),
    "share_changed": ("boxes whose segment changed (%)", 100),
    "share_without_candidate": ("boxes without a candidate (%)", 100),
    "mean_overlap_cost": ("mean overlap cost", 1),
    "mean_regression_cost": ("mean regression cost", 1),
    "images_per_s": ("images per second", 1),
    "train_s": ("training steps (s)", 1),
    "first_batch_s": ("wait for the first batch (s)", 1),
    "wait_share": ("wait for later batches (% of the steps)", 100),
    "gap_s": ("pause before the epoch, without stages (s)", 1),
    "num_images": ("validation images", 1),
    "num_without_ground_truth": ("validation images without ground truth", 1),
}

# Keys of a run's summary whose name alone does not say which images they count.
RESULTS = {
    "num_images": "training images",
    "num_left_out": "training images left out: another table has them",
}

# Stage of an epoch, as progress and `seconds` name it.
STAGES = {
    "reassign": "choosing segments",
    "measure_labels": "measuring the label maps",
    "train": "training",
    "evaluate": "evaluating",
    "figures": "drawing examples",
}

# What the time of a run went into, as runs/timeline names it.
ACTIVITIES = {
    "steps": "training",
    "redone": "training again after failures",
    "data": "waiting for data",
    "reassign": "choosing segments",
    "stages": "waiting for evaluation and measurement",
    "save": "saving checkpoints",
    "start": "starting",
    "restart": "restarting after failures",
    "rest": "everything else",
}
