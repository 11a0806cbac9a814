"""Settings: defaults of the paper, a lossless trip through JSON, and a check that names what is wrong."""

import json
import math
from dataclasses import asdict, fields, is_dataclass, replace
from typing import get_args

import pytest

from boxsup_dist.config import (
    AssignmentSettings,
    AugmentSettings,
    NetworkSettings,
    OptimizerSettings,
    ResourceSettings,
    SourceSettings,
    Supervision,
    TrainConfig,
    differences,
)
from boxsup_dist.errors import SettingError
from boxsup_dist.runs.recipes import RECIPES

SOURCE = SourceSettings("records", "box", "proposals")
CONFIG = TrainConfig("run", (SOURCE,), "val")


def with_setting(name: str, value: object) -> TrainConfig:
    """CONFIG with one setting changed; `name` may be "part.field"."""
    part, _, field = name.rpartition(".")
    if not part:
        return replace(CONFIG, **{field: value})
    return replace(CONFIG, **{part: replace(getattr(CONFIG, part), **{field: value})})


def other_value(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, tuple):
        return (*value, SourceSettings("more", "mask"))
    if value is None:
        return 7
    return "another"


def all_settings(config: object, prefix: str = "") -> list[tuple[str, object]]:
    found = []
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            found += all_settings(value, f"{prefix}{field.name}.")
        else:
            found.append((prefix + field.name, value))
    return found


def make_source(supervision: str) -> SourceSettings:
    """A source with the tables that the supervision needs."""
    proposals = "proposals" if supervision == "box" else None
    label_maps = "maps" if supervision in ("grabcut", "wssl", "label_maps") else None
    return SourceSettings("records", supervision, proposals, label_maps)


SUPERVISIONS = get_args(Supervision)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_recipes_pass_their_own_check(recipe, supervision):
    sources = (make_source(supervision),)
    config = RECIPES[recipe]("run", sources, "val")
    assert config.check() is config
    assert (config.run_dir, config.sources, config.val_records) == ("run", sources, "val")
    assert config.supervision == supervision


@pytest.mark.parametrize("supervision", SUPERVISIONS)
@pytest.mark.parametrize("table", ["proposals", "label_maps"])
def test_a_source_names_exactly_the_tables_that_its_supervision_reads(supervision, table):
    source = make_source(supervision)
    source.check()
    wrong = replace(source, **{table: None if getattr(source, table) else "t"})
    if (supervision, table) == ("box", "label_maps"):  # may have some
        return wrong.check()
    with pytest.raises(SettingError) as caught:
        wrong.check()
    assert caught.value.field == table and supervision in str(caught.value)
    # What is missing is named with the command that makes it.
    assert (f"python -m jobs.build_{table} makes" in str(caught.value)) == (getattr(source, table) is not None)


def test_label_maps_of_boxes_are_for_refinement():
    sources = (replace(make_source("box"), label_maps="t"),)
    with pytest.raises(SettingError, match=r"no effect.*label_maps"):
        replace(CONFIG, sources=sources).check()
    refining = replace(CONFIG.assignment, consensus_temperature=0.1, refine_from_epoch=3)
    assert replace(CONFIG, sources=sources, assignment=refining).check().sources == sources
    with pytest.raises(SettingError, match=r"refine_from_epoch needs assignment.consensus_temperature: set it"):
        replace(CONFIG, assignment=replace(refining, consensus_temperature=None)).check()


@pytest.mark.parametrize("name", ["warmup_epochs", "refine_from_epoch"])
def test_an_assignment_schedule_that_the_run_never_reaches_is_refused(name):
    assignment = replace(CONFIG.assignment, consensus_temperature=0.1, **{name: 4})
    config = replace(CONFIG, assignment=assignment, optimizer=replace(CONFIG.optimizer, epochs=3))
    with pytest.raises(SettingError, match=rf"assignment.{name}; found: 4; expected: <= optimizer.epochs = 3"):
        config.check()
    replace(config, optimizer=replace(CONFIG.optimizer, epochs=4)).check()


def test_what_is_ignored_anyway_is_not_completed():
    completing = replace(
        CONFIG.assignment, consensus_temperature=0.1, ignore_undecided=0.2, complete_undecided=True, warmup_epochs=2
    )
    assert [replace(CONFIG, assignment=completing).check().assignment.completes(n) for n in range(4)] == [0, 0, 1, 1]
    with pytest.raises(SettingError, match=r"assignment.ignore_outside; found: True; expected: false: what is ignored"):
        replace(CONFIG, assignment=replace(completing, ignore_outside=True)).check()


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_a_number_that_is_not_finite_is_refused(name):
    for value in (math.inf, math.nan):
        with pytest.raises(SettingError, match=f"optimizer.{name}; found: {value}"):
            replace(CONFIG, optimizer=replace(CONFIG.optimizer, **{name: value})).check()


def test_a_mixture_is_named_by_its_supervisions():
    sources = (make_source("mask"), make_source("box"), make_source("mask"))
    assert replace(CONFIG, sources=sources).check().supervision == "mask+box"


def test_the_paper_recipe_has_the_papers_settings():
    config = RECIPES["paper"]("run", (SOURCE,), "val")
    optimizer, assignment = config.optimizer, config.assignment
    assert (assignment.form, assignment.regression_weight, assignment.top_k) == ("image", 3.0, 5)
    assert assignment.box_margin is None and not assignment.ignore_outside and assignment.logit_limit is None
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (1e-3, 0.9, 5e-4)
    assert (optimizer.global_batch_size, optimizer.epochs, optimizer.decay_epochs) == (20, 45, 15)


@pytest.mark.parametrize("config", [CONFIG, *(recipe("r", (SOURCE,), None) for recipe in RECIPES.values())])
def test_settings_survive_json(config):
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name, value", all_settings(CONFIG), ids=lambda v: str(v))
def test_every_setting_survives_json(name, value):
    config = with_setting(name, other_value(value))
    assert config != CONFIG
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_run_of_an_earlier_version_says_how_it_learned():
    """One factor for all layers after the backbone, none for biases."""
    values = asdict(CONFIG)
    values["optimizer"] |= {"head_lr_multiplier": 5.0}
    del values["optimizer"]["score_lr_multiplier"], values["optimizer"]["bias_lr_multiplier"]
    found = TrainConfig.from_dict(json.loads(json.dumps(values))).optimizer
    assert (found.head_lr_multiplier, found.score_lr_multiplier, found.bias_lr_multiplier) == (5.0, 5.0, 1.0)


def test_the_crop_of_the_paper_is_not_scaled():
    assert AugmentSettings() == AugmentSettings(321, 321, 1.0, 1.0, flip=True)


def test_settings_of_another_version_are_refused():
    values = asdict(CONFIG)
    for bad in ({**values, "extra": 1}, {**values, "optimizer": {"momentums": 0.9}}, {"run_dir": "run"}):
        with pytest.raises(SettingError, match="not the settings of a training run"):
            TrainConfig.from_dict(bad)


BAD = {
    "assignment.form": ["mean", ""],
    "assignment.regression_weight": [-0.1],
    "assignment.top_k": [0, -1],
    "assignment.warmup_epochs": [0],
    "assignment.max_candidates": [0, -1],
    "assignment.box_margin": [-0.1],
    "assignment.consensus_temperature": [0.0],
    "assignment.average_decay": [0.0, 1.0],
    "assignment.refine_from_epoch": [0, 1],  # 0: epochs count from 1; 1: has no effect without a consensus
    "assignment.rank_weight": [-0.1],
    "assignment.logit_limit": [2.0],  # has no effect with form "image"
    "assignment.ignore_undecided": [0.25],  # has no effect without a consensus
    "assignment.complete_undecided": [True],  # has no effect without undecided superpixels
    "optimizer.kind": ["adam"],
    "optimizer.epochs": [0],
    "optimizer.global_batch_size": [0],
    "optimizer.decay_epochs": [0],
    "optimizer.schedule": ["cosine"],
    "optimizer.lr": [0, -1e-3],
    "optimizer.head_lr_multiplier": [0],
    "optimizer.score_lr_multiplier": [0],
    "optimizer.bias_lr_multiplier": [0],
    "optimizer.momentum": [-0.1, 1.0],
    "optimizer.weight_decay": [-1e-4],
    "optimizer.warmup_steps": [-1],
    "optimizer.class_balance": [-0.5],
    "optimizer.foreground_weight": [0, -1],
    "augment.crop_height_px": [15],
    "augment.crop_width_px": [0],
    "augment.scale_min": [0, -1, 1.6],  # above scale_max
    "augment.scale_max": [0.4],
    "resources.num_workers": [0, -1, 21],  # more than images in a global batch
    "resources.num_actors": [0, -1],
    "resources.cpus_per_worker": [-1],
    "resources.gpus_per_worker": [-0.5],
    "resources.cpus_per_actor": [-1],
    "resources.gpus_per_actor": [-0.5],
    "resources.threads_per_worker": [0],
    "resources.threads_per_actor": [0],
    "resources.stream_tasks_per_worker": [0],
    "resources.max_failures": [-1],
    "resources.min_workers": [-1],
    "sources": [()],
    "duplicates": ["keep"],
    "val_records": [None],
    "evaluate_every": [-1],
    "checkpoint_every_steps": [-1],
    "checkpoint_every_s": [-0.1, float("nan")],
    "max_bad_records": [-1],
    "keep_checkpoints": [0],
}
NAMED_BY = {"val_records": {"evaluate_every"}, "augment.scale_max": {"augment.scale_min"}}  # fmt: skip


@pytest.mark.parametrize("name, value", [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_setting_is_named(name, value):
    with pytest.raises(SettingError) as caught:
        with_setting(name, value).check()
    error = caught.value
    assert error.field in NAMED_BY.get(name, {name})
    assert error.expected and error.field in str(error) and error.expected in str(error)


def test_every_number_is_checked():
    # A new setting must get a check, or be named here as one that any value suits or another place checks.
    unbounded = {"seed"}
    checked_by_network_spec = {"network.output_stride", "network.head_channels", "network.dropout"}
    assert numbers_of(CONFIG) - set(BAD) == unbounded | checked_by_network_spec


def numbers_of(config: object, prefix: str = "") -> set[str]:
    """Dotted names of the settings that take a number, set or not."""
    found = set()
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            found |= numbers_of(value, f"{prefix}{field.name}.")
        elif {"int", "float"} & set(field.type.split(" | ")):
            found.add(prefix + field.name)
    return found


def test_settings_at_their_limits_pass():
    replace(
        CONFIG,
        assignment=AssignmentSettings(
            "centred", 0.0, 1, 1, logit_limit=0.1, consensus_temperature=1e-3, ignore_undecided=0.99
        ),
        optimizer=OptimizerSettings("adamw", 1, 1, momentum=0.0, weight_decay=0.0, decay_epochs=1),
        augment=AugmentSettings(16, 16, 1.0, 1.0),
        resources=ResourceSettings(1, cpus_per_worker=0.0, num_actors=1, cpus_per_actor=0.0, max_failures=0),
        network=NetworkSettings("timm:resnet18"),
        keep_checkpoints=1,
        evaluate_every=0,
        val_records=None,
    ).check()
    replace(CONFIG, sources=(SourceSettings("records", "mask"),)).check()


def test_differences_have_dotted_names_and_both_values():
    other = with_setting("optimizer.epochs", 20)
    other = replace(other, seed=3, sources=(replace(SOURCE, proposals="p"), SourceSettings("more", "mask")))
    assert differences(CONFIG, other) == {
        "optimizer.epochs": (45, 20),
        "seed": (0, 3),
        "sources[0].proposals": ("proposals", "p"),
        "sources[1].records": (None, "more"),
        "sources[1].supervision": (None, "mask"),
    }
    assert differences(other, other) == {}
