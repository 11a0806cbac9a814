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
from typing import Annotated, Any, cast

import tyro

from boxsup_dist.config import SourceSettings, TrainConfig
from boxsup_dist.errors import SettingError
from boxsup_dist.runs.command_line import check_choice, clear_errors, open_tables, program
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.recipes import RECIPES, RecipeName, with_epochs


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


def _preset(recipe: RecipeName) -> Settings:
    """The values of a recipe; tables and run directory are still to be given."""
    missing: Any = tyro.MISSING
    return Settings(SourceSettings(missing), RECIPES[recipe](missing, (), None))


def _first_line(recipe: RecipeName) -> str:
    return (RECIPES[recipe].__doc__ or recipe).strip().partition("\n")[0]


def read_arguments(arguments: list[str]) -> Settings:
    """The settings of a command line: a recipe, and what differs from it. --help ends the process.

    Raises:
        SettingError: The first argument is no recipe.
    """
    first = arguments[0] if arguments else "-"
    if first in ("-h", "--help"):
        presets: dict[str, tuple[str, Settings]] = {name: (_first_line(name), _preset(name)) for name in RECIPES}
        tyro.extras.overridable_config_cli(presets, prog=program(), description=__doc__)
    if first.startswith("-"):
        expected = f"one of {', '.join(RECIPES)}, as in `{program()} mini --run-dir ...`"
        raise SettingError("name a recipe first", field="recipe", expected=expected)
    check_choice(first, RECIPES, "recipe")
    recipe = cast(RecipeName, first)

    def read(preset: Settings) -> Settings:
        prog, text = f"{program()} {recipe}", _first_line(recipe)
        return tyro.cli(Settings, default=preset, prog=prog, description=text, args=arguments[1:])

    preset = _preset(recipe)
    found = read(preset)
    epochs = found.config.optimizer.epochs
    if epochs == preset.config.optimizer.epochs:
        return found
    # What the recipe says of epochs is for its own number of them; what the user sets stands.
    return read(replace(preset, config=with_epochs(preset.config, max(epochs, 1))))


def main() -> None:
    """Train, or continue the training, and print its result."""
    settings = read_arguments(sys.argv[1:])
    sources = (settings.first, *map(parse_source, settings.also))
    config = replace(settings.config, sources=sources).check()
    open_tables(config)
    print("loading PyTorch", flush=True)
    # Imported here so that --help and a wrong argument are answered at once: these load torch and Ray.
    from boxsup_dist.runs.train import train
    from boxsup_dist.tracking.models import fetch_weights

    weights = fetch_weights(config.network.weights, RunFiles(config.run_dir).start)
    train(replace(config, network=replace(config.network, weights=weights)))


if __name__ == "__main__":
    with clear_errors():
        main()
