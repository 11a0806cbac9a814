"""Plan a training on a cluster before you rent it: hours, storage, memory, cost.

    python -m jobs.plan paper --num-images 10582 --nodes 2 --cpus-per-node 16 --gpus-per-node 4

The plan is computed from rates that jobs.calibrate measured. Each line says whether its value is exact, measured,
extrapolated or assumed, and from what (boxsup_dist/runs/planning.py explains it). Warnings name settings that do not
fit or that slow the training down.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from boxsup_dist.config import ResourceSettings, Supervision
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.command_line import Epochs, run
from boxsup_dist.runs.planning import RATES_FILE, VOC_IMAGE_PX, Cluster, Plan, Workload, make_plan, read_rates
from boxsup_dist.runs.recipes import RECIPES, RecipeName, with_epochs


@dataclass(frozen=True)
class Settings:
    """A recipe, what it trains on, and the cluster."""

    recipe: Annotated[RecipeName, tyro.conf.Positional]
    """Recipe of the training."""
    num_images: int
    """Training images."""
    nodes: int
    """Nodes of the cluster."""
    cpus_per_node: int
    """CPU cores per node."""
    gpus_per_node: int = 0
    """GPUs per node."""
    memory_gib_per_node: float = 64.0
    """Memory per node."""
    gpu_memory_gib: float | None = None
    """Memory of one GPU; set it to be warned of batches that do not fit."""
    price_per_node_hour: float | None = None
    """Price in any currency; the cost is in the same."""
    rates: str = RATES_FILE
    """File of jobs.calibrate."""
    boxes_per_image: float = 2.5
    """Mean number of boxes per image."""
    image_px: int = VOC_IMAGE_PX
    """Mean pixels of an image. The default is VOC's 500 x 375."""
    num_val_images: int = 1449
    """Images per evaluation. The default is VOC 2012 val."""
    supervision: Supervision = "box"
    """Annotation that training uses."""
    epochs: Epochs = None
    resources: ResourceSettings = field(default_factory=ResourceSettings)


def main(settings: Settings) -> None:
    """Print the plan and its warnings."""
    print(show(plan(settings)))


def plan(settings: Settings) -> Plan:
    """The plan of these settings.

    Raises:
        InputError: A setting is out of range, or there are no rates of the recipe.
    """
    config = RECIPES[settings.recipe]("", (), None)
    settings.resources.check()
    config = with_epochs(config, config.optimizer.epochs if settings.epochs is None else settings.epochs)
    config.optimizer.check()
    workload = Workload(
        settings.num_images, settings.boxes_per_image, settings.image_px, settings.num_val_images, settings.supervision
    )
    cluster = Cluster(
        settings.nodes,
        settings.cpus_per_node,
        settings.gpus_per_node,
        settings.memory_gib_per_node,
        settings.gpu_memory_gib,
        settings.price_per_node_hour,
    )
    config = replace(config, resources=settings.resources)
    return make_plan(config, workload, cluster, read_rates(settings.rates, settings.recipe))


def show(found: Plan) -> str:
    """The plan as a table, and the warnings below it."""
    rows = []
    for line in found.lines:
        number = f"{line.value:,.0f}" if line.value >= 100 or line.value == int(line.value) else None
        rows.append({"": line.name, "value": number or f"{line.value:.3g}", "unit": line.unit, "basis": line.basis})
    return "\n".join([format_table(rows), *(f"warning: {text}" for text in found.warnings)])


if __name__ == "__main__":
    run(main)
