"""Settings of the network, the assignment, the optimizer, the augmentation and the prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from boxsup_dist.config.checks import check_choice, check_needs, check_range

CostForm = Literal["image", "centred"]
Head = Literal["largefov", "aspp"]
Schedule = Literal["step", "poly"]
OptimizerKind = Literal["sgd", "adamw"]
# The coarsest stride of any network. Image tiles start at the network's multiple next below it or at it, so that their
# cells are the cells of the image.
TILE_GRID_PX = 32
ADAMW_WARMUP_STEPS = 50
CHECKPOINT_PREFIX = "checkpoint:"  # of weights that are a trained network


@dataclass(frozen=True)
class NetworkSettings:
    """Which network to train, and where its first weights come from. The number of classes is that of the records."""

    name: str = "deeplab_largefov_vgg16"
    """deeplab_largefov_vgg16 (the paper's), fcn32s_vgg16, fcn16s_vgg16, fcn8s_vgg16 or timm:MODEL, such as
    timm:tf_efficientnet_lite2 or timm:vit_small_patch14_dinov2."""
    weights: str | None = None
    """Where the first weights come from. A path or URI: a state dict. `package:efficientnet-lite0` (1, 2), `timm`,
    `torchvision:NAME` or `torchvision:NAME@PATH`: published ImageNet weights. `hed:PATH`: a file of
    jobs.get_hed_weights, whose stages 1 to 4 start a network on VGG-16; needs random_fc. `none`: random values.
    `checkpoint:URI`: start from another run's network; its score layer is replaced, so the number of classes may
    differ. Not set: the network's usual ImageNet weights."""
    output_stride: int | None = None
    """Input pixels per cell of the score map. Convolutional timm:MODEL: 8 or 16 (not set: 16). Every other network has
    its own, such as the patches of a transformer, and takes only that."""
    random_fc: bool = False
    """Start fc6 and fc7 of a network on VGG-16 at random. Not set: from VGG-16's classifier, thinned out as published;
    weights without one, such as torchvision:IMAGENET1K_FEATURES, are refused."""
    head: Head = "largefov"
    """Head of timm:MODEL. The VGG-16 networks have their own and take only the default."""
    head_channels: int | None = None
    """Channels of the head. Not set: as published, 1024 for DeepLab and 4096 for FCN; 256 for timm:MODEL."""
    dropout: float | None = None
    """Dropout rate before the score layer, for VGG-16 also after fc6. Not set: 0.5 for VGG-16, 0.1 for timm:MODEL."""


@dataclass(frozen=True)
class AssignmentSettings:
    """How a box gets its candidate segment. boxsup_dist/assignment/cost.py explains each choice."""

    form: CostForm = "image"
    """Form of the regression cost. image: the paper's, averaged over the image. centred: centred inside the box."""
    regression_weight: float = 3.0
    """Weight of the regression cost beside the overlap cost: lambda of equation 4."""
    top_k: int = 5
    """Draw the segment among this many cheapest candidates; 1 takes the cheapest."""
    warmup_epochs: int = 1
    """First epochs whose labels ignore the network: box takes the overlap alone, wssl_em the filled boxes. At least 1,
    because the network starts uniform and wssl_em would never learn a foreground from it."""
    box_margin: float | None = None
    """How far a segment may leave its box, as a share of the box's sides. Pixels further away are neither scored nor
    painted. Not set: no limit."""
    ignore_outside: bool = False
    """Ignore the pixels of a box that no segment covers, instead of painting them background."""
    logit_limit: float | None = None
    """Clip the log-odds of each pixel to this limit in the centred form. Not set: no limit."""
    max_candidates: int | None = None
    """Consider only this many candidates per image, the best by the proposals' own rank. Not set: all of the table."""
    rank_weight: float = 0.0
    """Add this times ln(rank) to the cost of a candidate; rank counts from 1 among the proposals of the image."""
    consensus_temperature: float | None = None
    """Take the segment on which the cheap candidates agree; each votes with weight exp(-cost / consensus_temperature).
    Not set: take one candidate, as the paper does."""
    ignore_undecided: float | None = None
    """Ignore superpixels on which the candidates disagree: outside the chosen segment but with more than this share of
    the votes, or inside it with less than half. In epochs that refine: superpixels that the refined outline cuts, with
    more than this share of their pixels on either side. Not set: ignore none. Needs consensus_temperature."""
    complete_undecided: bool = False
    """After the warm-up, let the network complete these superpixels in every step, by their share of the votes and its
    own scores (EM), instead of ignoring them. Needs ignore_undecided."""
    average_decay: float | None = None
    """Assign with a moving average of the network's weights, which keeps this share of its old value at every step. Not
    set: assign with the newest weights, as the paper does."""
    refine_from_epoch: int | None = None
    """Refine the segments from this epoch on, counted from 1 (1 refines from the first epoch): by a CRF, the network's
    own prediction inside the boxes and, where a source has label maps, their vote (assignment/refine.py). Not set:
    never. Needs consensus_temperature."""

    def completes(self, epoch: int) -> bool:
        """Whether the network completes the undecided superpixels in the steps of this epoch, from 0."""
        return self.complete_undecided and epoch >= self.warmup_epochs

    def check(self) -> None:
        """Check the values.

        Raises:
            SettingError: A value is out of range or would have no effect.
        """
        check_choice(self.form, CostForm, "assignment.form")
        for name, least in (("regression_weight", 0), ("top_k", 1), ("warmup_epochs", 1), ("rank_weight", 0)):
            value = getattr(self, name)
            check_range(value >= least, f"assignment.{name}", value, f">= {least}")
        if self.box_margin is not None:
            check_range(self.box_margin >= 0, "assignment.box_margin", self.box_margin, ">= 0")
        for name in ("max_candidates", "refine_from_epoch"):
            value = getattr(self, name)
            check_range(value is None or value >= 1, f"assignment.{name}", value, ">= 1")
        for name in ("consensus_temperature", "logit_limit"):
            value = getattr(self, name)
            check_range(value is None or value > 0, f"assignment.{name}", value, "> 0")
        for name in ("ignore_undecided", "average_decay"):
            value = getattr(self, name)
            check_range(value is None or 0 < value < 1, f"assignment.{name}", value, f"0 < {name} < 1")
        for name in ("ignore_undecided", "refine_from_epoch"):
            check_needs(
                getattr(self, name),
                f"assignment.{name}",
                "assignment.consensus_temperature",
                self.consensus_temperature is not None,
            )
        check_needs(
            self.complete_undecided or None,
            "assignment.complete_undecided",
            "assignment.ignore_undecided",
            self.ignore_undecided is not None,
        )
        if self.complete_undecided:
            expected = "false: what is ignored anyway is not completed; or complete_undecided not set"
            check_range(not self.ignore_outside, "assignment.ignore_outside", self.ignore_outside, expected)
        check_needs(self.logit_limit, "assignment.logit_limit", "assignment.form centred", self.form == "centred")


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its schedule. The defaults are the paper's (section 4.3) and, for the factors, DeepLab's."""

    kind: OptimizerKind = "sgd"
    """sgd: the paper's. adamw: learns more in the few hundred steps of small recipes."""
    epochs: int = 45
    """Passes over the training records."""
    global_batch_size: int = 20
    """Images per step, over all workers."""
    lr: float = 1e-3
    """Learning rate of the backbone."""
    head_lr_multiplier: float = 1.0
    """Factor on the learning rate of the layers between the backbone and the score layers: fc6 and fc7 of VGG-16."""
    score_lr_multiplier: float = 10.0
    """Factor on the learning rate of the score layers; the published FCN uses 1."""
    bias_lr_multiplier: float = 2.0
    """Further factor on the learning rate of biases."""
    schedule: Schedule = "step"
    """step: divide by 10 every `decay_epochs`. poly: (1 - progress) ** 0.9, for short runs."""
    decay_epochs: int = 15
    """Epochs between two divisions of the step schedule."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises linearly from zero; fewer than the run has. Not set: 0 for sgd, 50 for
    adamw, or an eighth of the steps of a run of fewer than 400."""
    momentum: float = 0.9
    """Momentum of SGD; decay of the first moment of AdamW."""
    weight_decay: float = 5e-4
    """L2 penalty of SGD; decoupled decay of AdamW."""
    class_balance: float = 0.0
    """Weigh a pixel of class c by (mean box area of all classes / box area of class c) ** class_balance. 0: weigh all
    classes alike."""
    foreground_weight: float = 1.0
    """Further factor on the weight of every class but the background. Above 1 the network finds more of the objects,
    and takes more background for them."""

    def check(self) -> None:
        """Check the values.

        Raises:
            SettingError: A value is out of range.
        """
        for name in ("epochs", "global_batch_size", "decay_epochs"):
            check_range(getattr(self, name) >= 1, f"optimizer.{name}", getattr(self, name), ">= 1")
        check_choice(self.kind, OptimizerKind, "optimizer.kind")
        check_choice(self.schedule, Schedule, "optimizer.schedule")
        for name in ("lr", "head_lr_multiplier", "score_lr_multiplier", "bias_lr_multiplier", "foreground_weight"):
            check_range(getattr(self, name) > 0, f"optimizer.{name}", getattr(self, name), "> 0")
        check_range(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "0 <= momentum < 1")
        for name in ("weight_decay", "warmup_steps", "class_balance"):
            value = getattr(self, name)
            check_range(value is None or value >= 0, f"optimizer.{name}", value, ">= 0")

    def warmup(self, total_steps: int) -> int:
        """The steps of the warm-up in a run of `total_steps` steps.

        Raises:
            SettingError: `warmup_steps` is set and the run has no step after them.
        """
        if self.warmup_steps is None:
            return min(ADAMW_WARMUP_STEPS, total_steps // 8) if self.kind == "adamw" else 0
        expected = f"fewer than the {total_steps} steps of the run, or not set: it is then fitted to the run"
        fits = self.warmup_steps == 0 or self.warmup_steps < total_steps
        check_range(fits, "optimizer.warmup_steps", self.warmup_steps, expected)
        return self.warmup_steps


@dataclass(frozen=True)
class AugmentSettings:
    """Random scale, crop and flip of a training image. The defaults are DeepLab's: a crop and a mirror, no scale."""

    crop_height_px: int = 321
    """Height of the crop that the network sees."""
    crop_width_px: int = 321
    """Width of the crop that the network sees."""
    scale_min: float = 1.0
    """Smallest factor on the size of the image."""
    scale_max: float = 1.0
    """Largest factor on the size of the image."""
    flip: bool = True
    """Mirror half of the images."""

    def check(self) -> None:
        """Check the values.

        Raises:
            SettingError: A value is out of range.
        """
        check_range(self.crop_height_px >= 16, "augment.crop_height_px", self.crop_height_px, ">= 16")
        check_range(self.crop_width_px >= 16, "augment.crop_width_px", self.crop_width_px, ">= 16")
        check_range(
            0 < self.scale_min <= self.scale_max, "augment.scale_min", self.scale_min, "0 < scale_min <= scale_max"
        )


@dataclass(frozen=True)
class PredictionSettings:
    """Test-time options of a prediction. The defaults are a plain forward pass."""

    scales: tuple[float, ...] = (1.0,)
    """Factors on the size of the image; the score maps are averaged. BoxSup+ uses 0.8 1 1.2."""
    flip: bool = False
    """Average with the prediction of the mirrored image."""
    crf: str | None = None
    """Parameter set of the dense CRF: a name of boxsup_dist/model/crf.py, or five numbers as "4,67,3,3,1" (weight, xy
    width and rgb width of the bilateral potential, weight and xy width of the spatial one). Not set: no CRF."""
    background_logit: float = 0.0
    """Add this to the background's score before the scores become probabilities: below 0 more pixels are predicted as
    objects. 0: the network's own balance."""
    tile_px: int | None = None
    """Predict larger images, and larger scaled images, in overlapping tiles with sides of this length. Approximate if
    the network sees further than an eighth of it (boxsup_dist/model/inference.py). Not set: whole images, whatever
    memory that takes."""

    def check(self) -> PredictionSettings:
        """Check the values.

        Returns:
            These settings.

        Raises:
            SettingError: A value is out of range.
        """
        good = len(self.scales) > 0 and all(0 < scale <= 8 for scale in self.scales)
        check_range(good, "scales", self.scales, "one factor or more, 0 < factor <= 8")
        check_range(math.isfinite(self.background_logit), "background_logit", self.background_logit, "a finite number")
        if self.tile_px is not None:
            check_range(self.tile_px >= 4 * TILE_GRID_PX, "tile_px", self.tile_px, f">= {4 * TILE_GRID_PX}")
        return self
