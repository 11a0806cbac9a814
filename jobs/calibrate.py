"""Measure the rates of this machine, in a minute or two: jobs.plan reads them.

    python -m jobs.calibrate mini
    python -m jobs.calibrate mini --records T --proposals T2      # on tables of yours

It measures on a few images of the embedded synthetic data, on one core or on the GPU, and adds the rates of the recipe
to the file of all recipes. Run it on a machine of the kind that the cluster will have.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Annotated

import tyro

from boxsup_dist.config import SourceSettings
from boxsup_dist.data.tables import open_table
from boxsup_dist.errors import SettingError
from boxsup_dist.proposals.settings import NativeMethod
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.planning import RATES_FILE, write_rates
from boxsup_dist.runs.recipes import RECIPES, RecipeName


@dataclass(frozen=True)
class Settings:
    """What to measure, and where to write."""

    recipe: Annotated[RecipeName, tyro.conf.Positional]
    """Recipe whose network, crop and assignment are measured."""
    out: str = RATES_FILE
    """File of the rates of all recipes."""
    records: str | None = None
    """Records table to measure on: its first row group. Default: the synthetic data."""
    proposals: str | None = None
    """Proposals table of these records."""
    method: NativeMethod = "selective_search"
    """Proposal method to measure."""
    num_images: int = 8
    """Images to measure on, at most a row group."""
    batch_images: int = 4
    """Images per training step. On a GPU set the batch that one worker will have."""
    seconds: float = 15.0
    """How long to train."""

    def check(self) -> None:
        """Raise SettingError on settings that do not work together."""
        if (self.records is None) != (self.proposals is None):
            missing, given = ("records", "proposals") if self.records is None else ("proposals", "records")
            raise SettingError(f"{given} needs {missing}: set both or neither", field=missing)
        for name in ("num_images", "batch_images", "seconds"):
            if getattr(self, name) <= 0:
                raise SettingError("a setting is out of range", field=name, value=getattr(self, name), expected="> 0")


def main(settings: Settings) -> None:
    """Measure, add the rates to OUT and print them."""
    settings.check()
    if settings.records is not None and settings.proposals is not None:
        open_table(settings.records, "records")
        open_table(settings.proposals, "proposals")
    from boxsup_dist.runs.calibration import Options, make_tables, measure

    options = Options(settings.recipe, settings.method, settings.num_images, settings.batch_images, settings.seconds)
    with tempfile.TemporaryDirectory() as folder:
        records, proposals = settings.records, settings.proposals
        if records is None or proposals is None:
            records, proposals = make_tables(folder, settings.num_images, settings.method)
        config = RECIPES[settings.recipe](folder, (SourceSettings(records, "box", proposals),), None)
        rates = measure(config, options)
    write_rates(settings.out, rates)
    print(format_table([{"rate": name, "value": value} for name, value in vars(rates).items()]))
    print(f"rates of {settings.recipe} are in {settings.out}")


if __name__ == "__main__":
    run(main, out_is_file=True)
