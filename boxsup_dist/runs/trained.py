"""A trained network and the names of its classes, by run directory, checkpoint or MLflow model; without Ray."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import NamedTuple

from boxsup_dist.data.input_names import InputNames, read_input_names
from boxsup_dist.data.schema import VOC_CLASSES
from boxsup_dist.data.tables import open_table
from boxsup_dist.errors import UNREADABLE_NOW, InputError
from boxsup_dist.model import checkpoint
from boxsup_dist.model.trained import TrainedNetwork, load_trained
from boxsup_dist.runs.checkpoints import BEST, best_checkpoint
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.tracking import models


class NamedNetwork(NamedTuple):
    """A trained network, and the name of each of its classes; class 0 is the background."""

    trained: TrainedNetwork
    class_names: tuple[str, ...]
    inputs: tuple[InputNames, ...]
    """What the annotations that it was trained on call images and classes, one per source; () if that is not known."""


def find_network(run_dir: str | None, choice: str | None) -> NamedNetwork:
    """The network that a command uses.

    Args:
        run_dir: Run directory of a training, or None.
        choice: "best" (of `run_dir`), a checkpoint, a run directory for its newest one, or an MLflow model. None: the
            newest checkpoint of `run_dir`.

    Raises:
        InputError: There is no such model or no whole checkpoint.
    """
    uri = choice or run_dir
    assert uri is not None, "command_line.check_network has found one"
    if choice == BEST:
        assert run_dir is not None, "as above"
        uri = best_checkpoint(run_dir)
    if not models.is_model_uri(uri):
        trained = load_trained(uri)
        return with_names(trained)
    with tempfile.TemporaryDirectory() as scratch:
        folder = models.fetch_checkpoint(uri, scratch)
        trained = replace(load_trained(folder), uri=uri)
        return NamedNetwork(trained, tuple(checkpoint.load(folder).extra[models.CLASS_NAMES]), ())


def with_names(trained: TrainedNetwork) -> NamedNetwork:
    """A run's network with the names of the records that it was trained on; without these, VOC's names or numbers."""
    num_classes = trained.spec.num_classes
    run_dir = trained.uri.rsplit("/", 2)[0]  # RUN/checkpoints/NAME
    inputs: tuple[InputNames, ...] = ()
    try:
        tables = [open_table(source.records, "records") for source in read_config(run_dir).sources]
        names, inputs = tables[0].classes, tuple(read_input_names(table.uri) for table in tables)
    except UNREADABLE_NOW:
        raise
    except InputError:
        names = VOC_CLASSES
    if len(names) != num_classes:
        names = tuple(f"class {i}" for i in range(num_classes))
    return NamedNetwork(trained, names, inputs)
