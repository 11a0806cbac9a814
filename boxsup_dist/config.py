"""All settings of a training run, with defaults from the paper, and the checks that join them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from boxsup_dist.errors import SettingError

Supervision = Literal["mask", "rectangles", "grabcut", "wssl", "wssl_em", "box"]
CostForm = Literal["image", "centred"]
Schedule = Literal["step", "poly"]
OptimizerKind = Literal["sgd", "adamw"]
Duplicates = Literal["refuse", "drop"]
# Tiles of an image begin on multiples of the coarsest stride of any network, so that their cells are the image's.
TILE_GRID_PX = 32


def _check(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise SettingError("a setting is out of range", field=name, value=value, expected=expected)


def _check_choice(value: object, choices: Any, name: str) -> None:
    # The command line offers the choices alone; a recipe written in Python may hold anything.
    _check(value in get_args(choices), name, value, f"one of {get_args(choices)}")


@dataclass(frozen=True)
class NetworkSettings:
    """Which network, and where its first weights come from."""

    name: str = "deeplab_largefov_vgg16"
    """deeplab_largefov_vgg16 (the paper's), fcn32s_vgg16, fcn16s_vgg16, fcn8s_vgg16 or timm:MODEL."""
    weights: str | None = None
    """A path to a state dict, package:NAME, torchvision:NAME, timm, none, or checkpoint:URI of a checkpoint or run
    directory, all but whose score layer is taken, for any number of classes; default: the network's usual ones."""
    num_classes: int = 21
    """Classes with background."""
    output_stride: int | None = None
    """Input pixels per pixel of the score map; 8 or 16 (default) for timm:MODEL, the others have their own."""
    head: Literal["largefov", "aspp"] = "largefov"
    """Head of a timm backbone."""
    dropout: float = 0.5
    """Dropout rate of the head."""


@dataclass(frozen=True)
class AssignmentSettings:
    """How a box takes its candidate segment; see boxsup_dist/assignment/cost.py for each choice."""

    form: CostForm = "image"
    """Regression term: the paper's, averaged over the image, or centred inside the box."""
    regression_weight: float = 3.0
    """Lambda of equation 4."""
    top_k: int = 5
    """Draw among the k cheapest candidates; 1 is winner-takes-all."""
    warmup_epochs: int = 1
    """Epochs whose labels come from the overlap alone, for wssl_em from the filled boxes. The first always does: the
    network starts uniform, and wssl_em would never come to see a foreground."""
    box_margin: float | None = None
    """How far a segment may leave its box, as a share of the box's sides; what is further away is neither scored nor
    painted. None: no limit."""
    ignore_outside: bool = False
    """Pixels of a box that no segment covers are ignored instead of background."""
    logit_limit: float | None = None
    """Limit of a pixel's log-odds in the centred form."""
    max_candidates: int | None = None
    """Candidates considered of each image, the best by the proposals' own rank; none: all that the table has."""
    rank_weight: float = 0.0
    """Added cost of a candidate: this times the natural logarithm of its rank among the image's proposals, from 1."""
    consensus_temperature: float | None = None
    """Take what the cheap candidates agree on, weighted by exp(-cost / this); none: the cheapest, as the paper does."""
    ignore_undecided: float | None = None
    """Ignore a box's pixels that over this share of the consensus wants and the segment lacks, or that it has against
    the majority."""
    average_decay: float | None = None
    """Choose by a moving average of the network's weights that keeps this share of itself at every step; none: by the
    newest weights, as the paper does."""
    refine_from_epoch: int | None = None
    """From this epoch on (0-based) segments are refined by a CRF, the network's own prediction inside the boxes and,
    where a source has label maps, their vote; see assignment/refine.py."""

    def check(self) -> None:
        """Raise SettingError on a value that can't work or would have no effect."""
        _check_choice(self.form, CostForm, "assignment.form")
        _check(self.regression_weight >= 0, "assignment.regression_weight", self.regression_weight, ">= 0")
        _check(self.top_k >= 1, "assignment.top_k", self.top_k, ">= 1")
        _check(self.warmup_epochs >= 1, "assignment.warmup_epochs", self.warmup_epochs, ">= 1")
        if self.box_margin is not None:
            _check(self.box_margin >= 0, "assignment.box_margin", self.box_margin, ">= 0")
        if self.max_candidates is not None:
            _check(self.max_candidates >= 1, "assignment.max_candidates", self.max_candidates, ">= 1")
        _check(self.rank_weight >= 0, "assignment.rank_weight", self.rank_weight, ">= 0")
        if self.consensus_temperature is not None:
            _check(
                self.consensus_temperature > 0, "assignment.consensus_temperature", self.consensus_temperature, "> 0"
            )
        if self.ignore_undecided is not None:
            name = "assignment.ignore_undecided"
            _check(self.consensus_temperature is not None, name, self.ignore_undecided, "none without a consensus")
            _check(0 < self.ignore_undecided < 1, name, self.ignore_undecided, "0 < share < 1")
        if self.average_decay is not None:
            _check(0 < self.average_decay < 1, "assignment.average_decay", self.average_decay, "0 < decay < 1")
        if self.refine_from_epoch is not None:
            name = "assignment.refine_from_epoch"
            _check(self.consensus_temperature is not None, name, self.refine_from_epoch, "none without a consensus")
            _check(self.refine_from_epoch >= 0, name, self.refine_from_epoch, ">= 0")
        if self.logit_limit is not None:
            _check(self.form == "centred", "assignment.logit_limit", self.logit_limit, "none with form 'image'")
            _check(self.logit_limit > 0, "assignment.logit_limit", self.logit_limit, "> 0")


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its schedule; the defaults are the paper's (section 4.3)."""

    kind: OptimizerKind = "sgd"
    """sgd, the paper's; adamw gets further in the few hundred steps of small recipes."""
    epochs: int = 45
    """Passes over the training records."""
    global_batch_size: int = 20
    """Images a step, over all workers."""
    lr: float = 1e-3
    """Learning rate of the backbone."""
    head_lr_multiplier: float = 10.0
    """Factor on the learning rate of all layers after the backbone; 1 is that of the published FCN."""
    schedule: Schedule = "step"
    """step: divide by 10 every `decay_epochs`; poly: (1 - progress) ** 0.9, for short runs."""
    decay_epochs: int = 15
    """Period of the step schedule."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from zero."""
    momentum: float = 0.9
    """Momentum of SGD; the first moment's decay of AdamW."""
    weight_decay: float = 5e-4
    """L2 penalty of SGD; decoupled decay of AdamW."""
    class_balance: float = 0.0
    """Weigh a pixel of class c by (mean box area of all classes / that of class c) to this power; 0: all alike."""

    def check(self) -> None:
        """Raise SettingError on a value that can't work."""
        for name in ("epochs", "global_batch_size", "decay_epochs"):
            _check(getattr(self, name) >= 1, f"optimizer.{name}", getattr(self, name), ">= 1")
        _check_choice(self.kind, OptimizerKind, "optimizer.kind")
        _check_choice(self.schedule, Schedule, "optimizer.schedule")
        for name in ("lr", "head_lr_multiplier"):
            _check(getattr(self, name) > 0, f"optimizer.{name}", getattr(self, name), "> 0")
        _check(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "0 <= momentum < 1")
        for name in ("weight_decay", "warmup_steps", "class_balance"):
            _check(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), ">= 0")


@dataclass(frozen=True)
class AugmentSettings:
    """Random scale, crop and flip of a training image."""

    crop_height_px: int = 321
    """Height of the crop that the network sees."""
    crop_width_px: int = 321
    """Width of the crop that the network sees."""
    scale_min: float = 0.5
    """Smallest factor on the image's size."""
    scale_max: float = 1.5
    """Largest factor on the image's size."""
    flip: bool = True
    """Mirror half of the images."""

    def check(self) -> None:
        """Raise SettingError on a value that can't work."""
        _check(self.crop_height_px >= 16, "augment.crop_height_px", self.crop_height_px, ">= 16")
        _check(self.crop_width_px >= 16, "augment.crop_width_px", self.crop_width_px, ">= 16")
        _check(0 < self.scale_min <= self.scale_max, "augment.scale_min", self.scale_min, "0 < scale_min <= scale_max")


@dataclass(frozen=True)
class ResourceSettings:
    """Processes and what each may use. Where `num_workers` or `num_actors` is 0, `resolve` fits them to the cluster."""

    num_workers: int = 0
    """Train workers (data parallel); 0: one a GPU, or one a CPU core up to 4."""
    min_workers: int = 0
    """Where a node went away and no other comes, go on with fewer workers, but not with less than this; 0: wait for
    the node. The batches and the labels stay the same."""
    cpus_per_worker: float = 0.25
    """CPUs that Ray reserves for a train worker. Small: what workers reserve, the data tasks can't have."""
    gpus_per_worker: float = 0.0
    """GPU share of a train worker; workers and actors never compute at the same time, so both may take 0.5."""
    threads_per_worker: int = 1
    """Torch threads of a train worker."""
    num_actors: int = 0
    """Members of the pool that reassigns labels and evaluates; 0: one a GPU, or one a CPU core."""
    cpus_per_actor: float = 0.25
    """CPUs that Ray reserves for an actor."""
    gpus_per_actor: float = 0.0
    """GPU share of an actor."""
    threads_per_actor: int = 1
    """Torch threads of an actor; sums depend on it in their last digits, so it is no property of the machine."""
    stream_tasks_per_worker: int = 2
    """Data tasks under way at once for one train worker."""
    max_failures: int = 3
    """How often a lost train worker is replaced before the run stops."""

    def resolve(self, num_cpus: int, num_gpus: int) -> ResourceSettings:
        """Fill in the zeros for a cluster of this size; a GPU is shared by one worker and one actor.

        Together they leave half of the CPUs to the data tasks.
        """
        num_workers = self.num_workers or num_gpus or min(num_cpus, 4)
        num_actors = self.num_actors or num_gpus or num_cpus
        share = max(math.floor(50 * num_cpus / (num_workers + num_actors)), 1) / 100
        resolved = replace(self, num_workers=num_workers, num_actors=num_actors)
        if self.num_workers == 0:
            cpus, gpus = (1.0, 0.5) if num_gpus else (self.cpus_per_worker, self.gpus_per_worker)
            resolved = replace(resolved, cpus_per_worker=min(cpus, share), gpus_per_worker=gpus)
        if self.num_actors == 0:
            cpus, gpus = (1.0, 0.5) if num_gpus else (self.cpus_per_actor, self.gpus_per_actor)
            resolved = replace(resolved, cpus_per_actor=min(cpus, share), gpus_per_actor=gpus)
        return resolved

    def check_room(self, num_cpus: int, num_gpus: int, *, with_training: bool = True) -> None:
        """Raise SettingError if resolved settings reserve more than a cluster has: Ray would wait for it for ever.

        A training needs a CPU besides, for its data tasks; without one only the actors count.
        """
        workers = self.num_workers if with_training else 0
        if with_training:
            expected = f"<= resources.num_workers = {workers}"
            _check(self.min_workers <= workers, "resources.min_workers", self.min_workers, expected)
        for kind, available in (("cpus", num_cpus - with_training), ("gpus", num_gpus)):
            a_worker, an_actor = getattr(self, f"{kind}_per_worker"), getattr(self, f"{kind}_per_actor")
            reserved = workers * a_worker + self.num_actors * an_actor
            if reserved > available:
                raise SettingError(
                    "workers and actors reserve more than the cluster has, less a CPU for the data tasks of a training",
                    field=f"resources.{kind}_per_worker, resources.{kind}_per_actor",
                    value=f"{workers} x {a_worker} + {self.num_actors} x {an_actor} = {reserved:g} {kind}",
                    expected=f"<= {available}; take fewer of them, or smaller shares",
                )

    def check(self) -> None:
        """Raise SettingError on a value that can't work."""
        shares = ("cpus_per_worker", "gpus_per_worker", "cpus_per_actor", "gpus_per_actor")
        for name in ("num_workers", "min_workers", "num_actors", *shares, "max_failures"):
            _check(getattr(self, name) >= 0, f"resources.{name}", getattr(self, name), ">= 0")
        for name in ("threads_per_worker", "threads_per_actor", "stream_tasks_per_worker"):
            _check(getattr(self, name) >= 1, f"resources.{name}", getattr(self, name), ">= 1")


@dataclass(frozen=True)
class PredictionSettings:
    """Test-time options of a prediction; the defaults are a plain forward pass."""

    scales: tuple[float, ...] = (1.0,)
    """Factors on the image's size; the score maps are averaged. BoxSup+ is 0.8 1 1.2."""
    flip: bool = False
    """Average with the mirrored image too."""
    crf: str | None = None
    """Parameter set of the dense CRF by its name (model/crf.py), or as "4,67,3,3,1": weight, xy and rgb width of the
    bilateral potential, weight and xy width of the spatial one; none: without."""
    tile_px: int | None = None
    """Predict a larger image, or a larger scaled one, in overlapping tiles of this side: approximate where the network
    sees further than an eighth of it (model/inference.py). None: whole, whatever memory that takes."""

    def check(self) -> PredictionSettings:
        """Raise SettingError on a value that can't work; returns self."""
        good = len(self.scales) > 0 and all(0 < scale <= 8 for scale in self.scales)
        _check(good, "scales", self.scales, "one factor or more, 0 < factor <= 8")
        if self.tile_px is not None:
            _check(self.tile_px >= 4 * TILE_GRID_PX, "tile_px", self.tile_px, f">= {4 * TILE_GRID_PX}")
        return self


@dataclass(frozen=True)
class SourceSettings:
    """One data set to train on, and the annotation that may be used of it."""

    records: str
    """Records table to train on."""
    supervision: Supervision = "box"
    """mask: ground truth; rectangles: filled boxes; grabcut, wssl: label maps made once by jobs.build_label_maps;
    wssl_em: after the warm-up the network's own prediction, with a bias for the boxes' classes; box: BoxSup."""
    proposals: str | None = None
    """Proposals table of those records; needed by the supervision box."""
    label_maps: str | None = None
    """Label maps of those records; needed by the supervisions grabcut and wssl, and a vote where box refines."""

    def check(self) -> None:
        """Raise SettingError unless it names exactly the tables that the supervision reads."""
        _check_choice(self.supervision, Supervision, "supervision")
        for name, users in (("proposals", ("box",)), ("label_maps", ("grabcut", "wssl"))):
            value, needed = getattr(self, name), self.supervision in users
            optional = self.supervision == "box" and name == "label_maps"
            if (value is not None) != needed and not optional:
                raise SettingError(
                    f"the supervision {self.supervision} {'needs a table' if needed else 'does not read this table'}",
                    field=name,
                    value=value,
                    expected="a table URI" if needed else "none",
                )


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Everything that decides its result is here."""

    run_dir: str
    """Folder or URI of the run: configuration, checkpoints, labels of every epoch, history, report."""
    sources: tuple[SourceSettings, ...] = ()
    """What to train on, mixed in one stream."""
    val_records: str | None = None
    """Records table to evaluate on during the run and at its end."""
    duplicates: Duplicates = "refuse"
    """An image that two sources share, or a source and val_records: refuse the run, or drop it from the later source
    and from training."""
    network: NetworkSettings = field(default_factory=NetworkSettings)
    assignment: AssignmentSettings = field(default_factory=AssignmentSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    seed: int = 0
    """Seed of order, augmentation, draws and initial weights."""
    evaluate_every: int = 5
    """Epochs between evaluations on `val_records`; 0 evaluates at the end only."""
    measure_labels: bool = True
    """Measure each epoch's label maps against ground truth where the records have some. Training never sees it."""
    max_bad_records: int = 10
    """Training images whose bytes don't decode: told, and trained as if all of their pixels were void; with more of
    them the run ends. 0 ends it at the first."""
    checkpoint_every_steps: int = 0
    """Steps between checkpoints inside an epoch; 0 keeps to one an epoch."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""
    experiment: str = "boxsup"
    """MLflow experiment."""

    def check(self) -> TrainConfig:
        """Raise SettingError on settings that can't work together or would have no effect; returns self."""
        for part in (self.assignment, self.optimizer, self.augment, self.resources):
            part.check()
        _check(len(self.sources) > 0, "sources", self.sources, "at least one data set to train on")
        for source in self.sources:
            source.check()
            if source.supervision == "box" and source.label_maps and self.assignment.refine_from_epoch is None:
                raise SettingError(
                    "label maps of a box-supervised source would have no effect",
                    field="label_maps",
                    value=source.label_maps,
                    expected="none, or a run with assignment.refine_from_epoch",
                )
        _check_choice(self.duplicates, Duplicates, "duplicates")
        for name in ("evaluate_every", "checkpoint_every_steps", "max_bad_records"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        if self.val_records is None and self.evaluate_every > 0:
            raise SettingError(
                "nothing to evaluate on: give val_records or set evaluate_every 0",
                field="evaluate_every",
                value=self.evaluate_every,
                expected="0 without val_records",
            )
        if self.resources.num_workers > self.optimizer.global_batch_size:
            raise SettingError(
                "more workers than images in a global batch",
                field="resources.num_workers",
                value=self.resources.num_workers,
                expected=f"<= optimizer.global_batch_size = {self.optimizer.global_batch_size}",
            )
        _check(self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, ">= 1")
        return self

    @property
    def supervision(self) -> str:
        """Name of the sources' supervisions, as "box" or "mask+box"."""
        return "+".join(dict.fromkeys(source.supervision for source in self.sources))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dictionary, as JSON gives it back."""
        return {**asdict(self), "sources": [asdict(source) for source in self.sources]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Inverse of to_dict. SettingError for settings that are not there, as another version may have had."""
        parts = {
            "network": NetworkSettings,
            "assignment": AssignmentSettings,
            "optimizer": OptimizerSettings,
            "augment": AugmentSettings,
            "resources": ResourceSettings,
        }
        try:
            sources = tuple(SourceSettings(**source) for source in values["sources"])
            rest = {key: parts[key](**value) if key in parts else value for key, value in values.items()}
            return cls(**{**rest, "sources": sources})
        except (KeyError, TypeError) as error:
            raise SettingError("not the settings of a training run", value=str(error)) from None
