"""Train a network under a recipe: python -m jobs.train {paper,mini} --run-dir R --records T ...

The same command continues an interrupted run.
"""

from __future__ import annotations

from typing import Any

import tyro

from boxsup_dist.recipes import RECIPES
from boxsup_dist.run import train
from jobs._cli import clear_errors


def _presets() -> dict[str, tuple[str, Any]]:
    missing: Any = tyro.MISSING
    presets = {}
    for name, recipe in RECIPES.items():
        description = (recipe.__doc__ or name).strip().splitlines()[0]
        presets[name] = (description, recipe(missing, missing, None, None, "box"))
    return presets


def main() -> None:
    """Run or continue one training and print its result."""
    summary = train(tyro.extras.overridable_config_cli(_presets(), description=__doc__))
    label = summary["label_mean_iou"]
    print(f"supervision    {summary['supervision']}")
    if summary["mean_iou"] is not None:
        print(f"mean IoU       {summary['mean_iou']:.2f}")
    if label is not None:
        print(f"label mIoU     {label['first']:.2f} -> {label['last']:.2f}")
    print(f"checkpoint     {summary['checkpoint']}")


if __name__ == "__main__":
    with clear_errors():
        main()
