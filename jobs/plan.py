"""What a training would take on a cluster: python -m jobs.plan RECIPE --images N --nodes N --cpus-per-node C ...

Prints steps, hours a stage, storage, memory and cost, from rates that jobs.calibrate measured, and warns of settings
that starve the data tasks or do not fit. Each line says whether it was measured or extrapolated, and from what
(boxsup_dist/runs/planning.py tells how).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from boxsup_dist.config import ResourceSettings, Supervision
from boxsup_dist.errors import SettingError
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.planning import VOC_IMAGE_PX, Cluster, Plan, Workload, make_plan, read_rates
from boxsup_dist.runs.recipes import RECIPES


@dataclass(frozen=True)
class Settings:
    """A recipe, what it trains on, and the cluster."""

    recipe: Annotated[str, tyro.conf.Positional]
    """paper, mini or demo."""
    images: int
    """Training images."""
    nodes: int
    """Nodes of the cluster."""
    cpus_per_node: int
    gpus_per_node: int = 0
    memory_gib_per_node: float = 64.0
    gpu_memory_gib: float | None = None
    """Memory of one GPU, to be warned of batches that do not fit."""
    price_per_node_hour: float | None = None
    """In any currency; the cost is in the same."""
    rates: str = "runs/rates.json"
    """File of jobs.calibrate."""
    boxes_per_image: float = 2.5
    image_px: int = VOC_IMAGE_PX
    """Mean pixels of an image; the default is VOC's 500 x 375."""
    val_images: int = 1449
    """Images of an evaluation; the default is VOC 2012 val."""
    supervision: Supervision = "box"
    epochs: int | None = None
    """Passes over the images; by default the recipe's."""
    resources: ResourceSettings = field(default_factory=ResourceSettings)


def main(settings: Settings) -> None:
    """Print the plan and its warnings."""
    print(show(plan(settings)))


def plan(settings: Settings) -> Plan:
    """The plan of these settings. SettingError for an unknown recipe."""
    if settings.recipe not in RECIPES:
        raise SettingError("no such recipe", field="recipe", value=settings.recipe, expected=" or ".join(RECIPES))
    config = RECIPES[settings.recipe]("", (), None)
    settings.resources.check()
    optimizer = replace(config.optimizer, epochs=settings.epochs or config.optimizer.epochs)
    optimizer.check()
    workload = Workload(
        settings.images, settings.boxes_per_image, settings.image_px, settings.val_images, settings.supervision
    )
    cluster = Cluster(
        settings.nodes,
        settings.cpus_per_node,
        settings.gpus_per_node,
        settings.memory_gib_per_node,
        settings.gpu_memory_gib,
        settings.price_per_node_hour,
    )
    config = replace(config, resources=settings.resources, optimizer=optimizer)
    return make_plan(config, workload, cluster, read_rates(settings.rates, settings.recipe))


def show(found: Plan) -> str:
    """The figures as a table, the warnings after it."""
    rows = []
    for figure in found.figures:
        number = f"{figure.value:,.0f}" if figure.value >= 100 or figure.value == int(figure.value) else None
        rows.append(
            {"": figure.name, "value": number or f"{figure.value:.3g}", "unit": figure.unit, "basis": figure.basis}
        )
    return "\n".join([format_table(rows), *(f"warning: {text}" for text in found.warnings)])


if __name__ == "__main__":
    run(main)
