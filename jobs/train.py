"""Train a network under a recipe: python -m jobs.train {paper,mini,demo} --run-dir R --records T --supervision box ...

A run on several data sets names the first by --records, --supervision and its partner tables, and each further one by
--also, such as --also supervision=mask,records=data/voc-train (paper: "semi"). With --network.weights
checkpoint:models:/NAME/1 it begins with an MLflow model. The same command continues an interrupted run.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

import tyro

from boxsup_dist.config import SourceSettings, TrainConfig
from boxsup_dist.errors import SettingError
from boxsup_dist.runs.command_line import clear_errors
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.recipes import RECIPES


@dataclass(frozen=True)
class Settings:
    """What to train on, and all settings of the run."""

    first: Annotated[SourceSettings, tyro.conf.arg(name="")]
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    also: tuple[str, ...] = ()
    """Further data sets, each as supervision=S,records=URI[,proposals=URI][,label_maps=URI]."""


def parse_source(text: str) -> SourceSettings:
    """A data set from "name=value,..."; SettingError if it is not of that form."""
    names = [field.name for field in fields(SourceSettings)]
    pairs = [part.partition("=") for part in text.split(",")]
    values = {name: value for name, _, value in pairs}
    if "records" not in values or not set(values) <= set(names) or not all(values.values()):
        expected = "records=URI and, with commas between, " + ", ".join(f"{name}=..." for name in names[1:])
        raise SettingError("not a data set", field="also", value=text, expected=expected)
    return SourceSettings(**values)  # type: ignore[arg-type]  # checked by SourceSettings.check


def _presets() -> dict[str, tuple[str, Any]]:
    missing: Any = tyro.MISSING
    presets = {}
    for name, recipe in RECIPES.items():
        description = (recipe.__doc__ or name).strip().splitlines()[0]
        presets[name] = (description, Settings(SourceSettings(missing), recipe(missing, (), None)))
    return presets


def main() -> None:
    """Run or continue one training and print its result."""
    settings = tyro.extras.overridable_config_cli(_presets(), description=__doc__)
    # Now, so that --help and a mistyped flag are answered at once: they import torch and Ray.
    from boxsup_dist.runs.train import train
    from boxsup_dist.tracking.models import fetch_weights

    sources = (settings.first, *map(parse_source, settings.also))
    config = settings.config
    weights = fetch_weights(config.network.weights, RunFiles(config.run_dir).start)
    train(replace(config, sources=sources, network=replace(config.network, weights=weights)))


if __name__ == "__main__":
    with clear_errors():
        main()
