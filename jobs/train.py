"""Train a network under a recipe, or continue an interrupted training.

    python -m jobs.train mini --run-dir R --records T --proposals P --val-records V
    python -m jobs.train mini --run-dir R --records T --supervision mask --evaluate-every 0
    python -m jobs.train mini --help      # all settings, with the values of the recipe mini

Add --also for each further data set, such as --also supervision=mask,records=data/voc-train (the paper's "semi").
With --network.weights checkpoint:URI it starts from another run's network, or from an MLflow model
(checkpoint:models:/NAME/1). Run the same command again to continue an interrupted run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

import tyro

from boxsup_dist.config import SourceSettings, TrainConfig
from boxsup_dist.data.tables import open_table
from boxsup_dist.errors import SettingError
from boxsup_dist.runs.command_line import check_choice, clear_errors, program
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
    """A data set from "name=value,...".

    Raises:
        SettingError: The text is not of that form.
    """
    names = [field.name for field in fields(SourceSettings)]
    pairs = [part.partition("=") for part in text.split(",")]
    values = {name: value for name, _, value in pairs}
    if "records" not in values or not set(values) <= set(names) or not all(values.values()):
        expected = "records=URI[,supervision=S][,proposals=URI][,label_maps=URI]"
        raise SettingError("not a data set", field="also", value=text, expected=expected)
    return SourceSettings(**values)  # type: ignore[arg-type]  # checked by SourceSettings.check


def _presets() -> dict[str, tuple[str, Any]]:
    missing: Any = tyro.MISSING
    presets: dict[str, tuple[str, Any]] = {}
    for name, recipe in RECIPES.items():
        description = (recipe.__doc__ or name).strip().splitlines()[0]
        presets[name] = (description, Settings(SourceSettings(missing), recipe(missing, (), None)))
    return presets


def _check_recipe(arguments: list[str]) -> None:
    """Raise SettingError unless the first argument is a recipe or asks for help."""
    first = arguments[0] if arguments else "-"
    if first in ("-h", "--help"):
        return
    if first.startswith("-"):
        expected = f"one of {', '.join(RECIPES)}, as in `{program()} mini --run-dir ...`"
        raise SettingError("name a recipe first", field="recipe", expected=expected)
    check_choice(first, RECIPES, "recipe")


def main() -> None:
    """Train, or continue the training, and print its result."""
    _check_recipe(sys.argv[1:])
    settings = tyro.extras.overridable_config_cli(_presets(), prog=program(), description=__doc__)
    sources = (settings.first, *map(parse_source, settings.also))
    config = replace(settings.config, sources=sources).check()
    for source in sources:
        open_table(source.records, "records")
    # Imported here so that --help and a wrong argument are answered at once: these load torch and Ray.
    from boxsup_dist.runs.train import train
    from boxsup_dist.tracking.models import fetch_weights

    weights = fetch_weights(config.network.weights, RunFiles(config.run_dir).start)
    train(replace(config, network=replace(config.network, weights=weights)))


if __name__ == "__main__":
    with clear_errors():
        main()
