"""What a training would take on a cluster, before it is rented: hours, storage, memory and cost from measured rates.

jobs.calibrate measures the rates of one core, one train worker or one actor on one machine. All else is arithmetic.
Every number of a plan says what it is based on:

    exact          follows from the settings and the given numbers
    measured       a rate as it was measured
    extrapolated   a rate scaled to images of another size (by pixels), to several workers or actors (rates add up, as
                   far as these do not share cores), to another batch per worker or to another kind of machine
    assumed        a constant of this module, which the plan names

Not counted: downloads, a cluster's start, gradients on a slow network, the measurement of label maps against masks
(`measure_labels`), and epochs of the warm-up, which are shorter.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

from boxsup_dist.config import Node, TrainConfig
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.records.settings import ROW_GROUP_SIZE
from boxsup_dist.runs.costs import Capacity, Costs, Epoch, epoch_of

GIB = 2**30
VOC_IMAGE_PX = 500 * 375
# Ray's own share (ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION and ..._MAX_MEMORY_BYTES).
OBJECT_STORE_SHARE = 0.3
OBJECT_STORE_MAX_BYTES = 200e9
RATES_FILE = "runs/rates.json"  # where jobs.calibrate writes and jobs.plan reads by default
BETWEEN_EPOCHS_S = 2.0  # the bound that jobs.bench holds a run to
SLICES_OF_A_LANE, SLICES_OF_A_TASK = 2, 8  # at most in the object store (training.stream.max_slices)
BYTES_OF_A_PIXEL = 4  # RGB and the label map; the prior of EM is one more
WEIGHTS_KEPT = 2  # epochs whose weights are in the object store at once
STARVED_BELOW = 0.95
SAME_SIZE = 0.05  # images whose pixels differ by less count as of one size


@dataclass(frozen=True)
class Rates:
    """What jobs.calibrate measured on one machine under one recipe."""

    recipe: str
    machine: str
    """The machine in words."""
    gpu: bool
    """Whether worker and actor were measured on a GPU."""
    image_px: float
    """Mean pixels of the measured images."""
    batch_images: int
    """Images per training step."""
    train_images_per_s: float
    """Images per second of a train worker whose batches are ready."""
    stream_s_per_image: float
    """Core seconds per image to read, decode, paint and augment."""
    assign_images_per_s: float
    """Images per second of an actor that reassigns, with the forward pass of the network."""
    evaluate_images_per_s: float
    """Images per second of an actor that evaluates."""
    proposals_method: str
    proposals_s_per_image: float
    """Core seconds per image to make proposals."""
    record_bytes: float
    """Stored bytes of records per image."""
    proposals_bytes: float
    """Stored bytes of proposals per image."""
    label_stored_bytes: float
    """Bytes per box in the labels table of an epoch."""
    weights_bytes: float
    """Weights of the network."""
    checkpoint_bytes: float
    """Weights and the optimizer's state."""
    process_bytes: float
    """Resident memory of a process that holds the network and has computed nothing yet."""
    train_bytes_per_image: float
    """Memory that a training step adds per image of its batch, without weights and optimizer; with `gpu` on the GPU."""

    def check(self) -> Rates:
        """Return these rates. Raise InputError if a number is not finite and above 0."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in ("int", "float") and not (
                isinstance(value, int | float) and math.isfinite(value) and value > 0
            ):
                raise InputError("a rate is out of range", field=field.name, value=value, expected="a number above 0")
        return self


@dataclass(frozen=True)
class Workload:
    """The data of the training."""

    num_images: int
    boxes_per_image: float = 2.5
    image_px: float = VOC_IMAGE_PX
    num_val_images: int = 1449
    supervision: str = "box"

    def check(self) -> Workload:
        """Return this. Raise SettingError if a number is out of range."""
        for name, least in (("num_images", 1), ("boxes_per_image", 0), ("image_px", 1), ("num_val_images", 0)):
            _check_least(name, getattr(self, name), least)
        return self


@dataclass(frozen=True)
class Cluster:
    """Nodes of one kind."""

    nodes: int
    cpus_per_node: int
    gpus_per_node: int = 0
    memory_gib_per_node: float = 64.0
    gpu_memory_gib: float | None = None
    price_per_node_hour: float | None = None

    def check(self) -> Cluster:
        """Return this. Raise SettingError if a number is out of range."""
        for name, least in (("nodes", 1), ("cpus_per_node", 1), ("gpus_per_node", 0), ("memory_gib_per_node", 1)):
            _check_least(name, getattr(self, name), least)
        for name in ("gpu_memory_gib", "price_per_node_hour"):
            if getattr(self, name) is not None:
                _check_least(name, getattr(self, name), 0)
        return self


def _check_least(name: str, value: float, least: float) -> None:
    if not (math.isfinite(value) and value >= least):
        raise SettingError("a setting is out of range", field=name, value=value, expected=f">= {least:g}")


@dataclass(frozen=True)
class Line:
    """One line of a plan: a number, and what it is based on."""

    name: str
    value: float
    unit: str
    basis: str


@dataclass(frozen=True)
class Plan:
    """Lines in the order to show them, and what to change before the cluster is rented."""

    lines: tuple[Line, ...]
    warnings: tuple[str, ...]

    def value(self, name: str) -> float:
        """The value of a line by its name. KeyError if there is none."""
        return {line.name: line.value for line in self.lines}[name]


def read_rates(uri: str, recipe: str) -> Rates:
    """The rates of a recipe in a file of jobs.calibrate. InputError if the file has none."""
    found = storage.read_json(uri) if storage.exists(uri) else {}
    if not isinstance(found, dict) or recipe not in found:
        expected = f"{recipe}: python -m jobs.calibrate {recipe} --out {uri} adds it"
        has = sorted(found) if isinstance(found, dict) else type(found).__name__
        raise InputError(f"no rates of the recipe {recipe}", file=uri, value=has or None, expected=expected)
    try:
        return Rates(**found[recipe]).check()
    except InputError as error:
        raise error.at(file=uri) from None
    except (TypeError, OverflowError):
        names = ", ".join(field.name for field in fields(Rates))
        raise InputError("not the rates of this version", file=uri, field=recipe, expected=names) from None


def write_rates(uri: str, rates: Rates) -> None:
    """Add a recipe's rates to a file, or replace them."""
    found = storage.read_json(uri) if storage.exists(uri) else {}
    if not isinstance(found, dict):
        raise InputError("not a file of rates: delete it, or choose another", file=uri, value=found)
    storage.write_json(uri, {**found, rates.recipe: asdict(rates.check())})


def make_plan(config: TrainConfig, workload: Workload, cluster: Cluster, rates: Rates) -> Plan:
    """Plan a training with the settings of this configuration; its sources are not read.

    Raises:
        SettingError: A number is out of range, or the rates were measured on a GPU and the cluster has none.
    """
    workload.check()
    cluster.check()
    if rates.gpu and not cluster.gpus_per_node:
        raise SettingError(
            "the rates were measured on a GPU, and the cluster has none",
            field="gpus_per_node",
            value=cluster.gpus_per_node,
            expected="1 or more, or rates measured on a machine without a GPU",
        )
    return _Planner(config, workload, cluster, rates).plan()


class _Planner:
    """The arithmetic of make_plan, part by part."""

    def __init__(self, config: TrainConfig, workload: Workload, cluster: Cluster, rates: Rates) -> None:
        self.config, self.workload, self.cluster, self.rates = config, workload, cluster, rates
        self.cpus, self.gpus = cluster.nodes * cluster.cpus_per_node, cluster.nodes * cluster.gpus_per_node
        self.nodes = [Node(cluster.cpus_per_node, cluster.gpus_per_node)] * cluster.nodes
        self.resources = config.resources.resolve(self.nodes, config.optimizer.global_batch_size)
        self.workers, self.actors = self.resources.num_workers, self.resources.num_actors
        self.batch = config.optimizer.global_batch_size
        self.epochs = config.optimizer.epochs
        self.size = workload.image_px / rates.image_px
        self.warnings: list[str] = []

    def plan(self) -> Plan:
        self._check_settings()
        time, stored, memory = self._time(), self._storage(), self._memory()
        hours = sum(line.value for line in time if line.unit == "h")
        worst = "extrapolated" if any(line.basis.startswith("extrapolated") for line in time) else "measured"
        time.append(Line("all stages", hours, "h", f"{worst}: the sum"))
        if self.cluster.price_per_node_hour is not None:
            price = self.cluster.price_per_node_hour
            basis = f"{worst}: {self.cluster.nodes} nodes at {price:g} per hour, all stages"
            time.append(Line("cost", hours * self.cluster.nodes * price, "", basis))
        return Plan((*self._counts(), *time, *stored, *memory), tuple(self.warnings))

    # -- settings ----------------------------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        if self.workers > self.batch:
            self.warnings.append(
                f"{self.workers} workers for a batch of {self.batch}: the run would be refused; this plan has "
                f"{self.batch} workers (--resources.num-workers {self.batch})"
            )
            self.workers = self.batch
        elif self.workers == self.batch < self.gpus and self.resources.gpus_per_worker:
            self.warnings.append(
                f"a global batch of {self.batch} images feeds train workers on {self.batch} of {self.gpus} GPUs; "
                "the others only reassign and evaluate (--optimizer.global-batch-size)"
            )
        try:
            self.resources.check_room(self.nodes)
        except SettingError as error:
            self.warnings.append(f"the run would be refused: {error}")
        if self.gpus and not self.rates.gpu:
            self.warnings.append("the rates were measured on a CPU and a GPU is faster: run jobs.calibrate on a GPU")

    def _counts(self) -> list[Line]:
        steps = math.ceil(self.workload.num_images / self.batch)
        return [
            Line("workers", self.workers, "", "exact"),
            Line("actors", self.actors, "", "exact"),
            Line("steps", steps * self.epochs, "", f"exact: {self.epochs} epochs of {steps}"),
        ]

    def _basis(self, *, by_size: bool, processes: int = 1, reasons: tuple[str, ...] = ()) -> str:
        """What a number is based on: "measured", or "extrapolated" and what its rate was scaled by."""
        scaled = list(reasons)
        if by_size and abs(self.size - 1) > SAME_SIZE:
            scaled.append(f"from images of {self.rates.image_px / 1e6:.2f} to {self.workload.image_px / 1e6:.2f} Mpx")
        if processes > 1:
            scaled.append(f"from 1 to {processes}")
        return "extrapolated: " + ", ".join(scaled) if scaled else "measured"

    # -- time --------------------------------------------------------------------------------------------------------

    def _free_cpus(self) -> float:
        """CPUs that workers and actors leave to the data tasks."""
        resources = self.resources
        reserved = self.workers * resources.cpus_per_worker + resources.num_actors * resources.cpus_per_actor
        return max(self.cpus - reserved, 0)

    def _capacity(self) -> Capacity:
        """What the cluster does at the same time. An actor has a GPU, or as many cores as it has threads."""
        resources = self.resources
        actors = self.actors if self.gpus else min(self.actors, self.cpus / resources.threads_per_actor)
        data_cores = min(max(self._free_cpus(), 1), self.workers * resources.stream_tasks_per_worker)
        return Capacity(self.workers, actors, data_cores, self.cpus, resources.threads_per_worker)

    def _epoch(self) -> Epoch:
        """An epoch of the run by the cost model. Warns if data tasks slow the training down."""
        epoch = epoch_of(self._costs(), self._capacity(), self.workload.num_images)
        if epoch.train * STARVED_BELOW > epoch.parts["steps"]:
            could_train, trained = (self.workload.num_images / s for s in (epoch.parts["steps"], epoch.train))
            cause = (
                f"{self._free_cpus():g} of {self.cpus} CPUs are left for data tasks, "
                f"{self.resources.stream_tasks_per_worker} tasks per worker"
                if epoch.parts["data tasks"] >= epoch.parts["shared cores"]
                else f"workers and data tasks share {self.cpus} cores"
            )
            self.warnings.append(
                f"data tasks slow the training down: the workers could train {could_train:.1f} images/s and get "
                f"{trained:.1f}; {cause}. Take more CPUs per node, or fewer processes and smaller shares "
                "(--resources.cpus-per-worker, --resources.cpus-per-actor, --resources.stream-tasks-per-worker, "
                "--resources.num-workers)"
            )
        return epoch

    def _costs(self) -> Costs:
        """The rates as the cost model takes them. Whole images are scaled by their pixels; crops have one size."""
        rates = self.rates
        return Costs(
            step=1 / rates.train_images_per_s,
            stream=rates.stream_s_per_image * self.size,
            choose=self.size / rates.assign_images_per_s,
            ingest=rates.proposals_s_per_image * self.size,
        )

    def _time(self) -> list[Line]:
        epochs, epoch, costs = self.epochs, self._epoch(), self._costs()
        device = ("from a CPU to a GPU",) if self.gpus and not self.rates.gpu else ()
        share = math.ceil(self.batch / self.workers)
        other_share = (f"from {self.rates.batch_images} to {share} images per step",)
        train_basis = self._basis(
            by_size=False,
            processes=self.workers,
            reasons=device + (other_share if share != self.rates.batch_images else ()),
        )
        found = [Line("train", epochs * epoch.train / 3600, "h", train_basis)]
        if self.workload.supervision == "box":
            core_s = self.workload.num_images * costs.ingest
            basis = self._basis(by_size=True, processes=self.cpus, reasons=())
            basis += f"; {self.rates.proposals_method}"
            found.insert(0, Line("proposals", core_s / self.cpus / 3600, "h", basis))
            basis = self._basis(by_size=True, processes=self.actors, reasons=device)
            found.append(Line("reassignment", epochs * epoch.reassign / 3600, "h", basis))
        evaluated = self.workload.num_val_images * self._evaluations()
        evaluate_s = self.size / self.rates.evaluate_images_per_s / self._capacity().actors
        basis = self._basis(by_size=True, processes=self.actors, reasons=device)
        found.append(Line("evaluation", evaluated * evaluate_s / 3600, "h", basis))
        basis = f"assumed: {BETWEEN_EPOCHS_S:g} s per epoch"
        found.append(Line("between epochs", BETWEEN_EPOCHS_S * epochs / 3600, "h", basis))
        return found

    def _evaluations(self) -> int:
        """How often the run evaluates: every `evaluate_every` epochs and at its end (runs/coordinator)."""
        every = self.config.evaluate_every
        return 1 if not every else self.epochs // every + (self.epochs % every > 0)

    # -- storage -----------------------------------------------------------------------------------------------------

    def _storage(self) -> list[Line]:
        images, rates = self.workload.num_images, self.rates
        by_size = self._basis(by_size=True)
        with_val = images + self.workload.num_val_images
        kept = self.config.keep_checkpoints + (self.workload.num_val_images > 0)  # and the best one
        found = [Line("records", with_val * rates.record_bytes * self.size / 1e9, "GB", by_size)]
        if self.workload.supervision == "box":
            boxes = images * self.workload.boxes_per_image
            labels = boxes * rates.label_stored_bytes * self.epochs
            found += [
                Line("proposals table", images * rates.proposals_bytes * self.size / 1e9, "GB", by_size),
                Line("labels", labels / 1e9, "GB", f"extrapolated: {self.epochs} epochs, from a small file, at most"),
            ]
        found.append(Line("checkpoints", kept * rates.checkpoint_bytes / 1e9, "GB", f"measured: {kept} are kept"))
        return found

    # -- memory ------------------------------------------------------------------------------------------------------

    def _memory(self) -> list[Line]:
        rates, nodes = self.rates, self.cluster.nodes
        workers, actors = math.ceil(self.workers / nodes), math.ceil(self.actors / nodes)
        tasks = min(workers * self.resources.stream_tasks_per_worker, self.cluster.cpus_per_node)
        crop_px = self.config.augment.crop_height_px * self.config.augment.crop_width_px
        block = ROW_GROUP_SIZE * crop_px * (BYTES_OF_A_PIXEL + self.config.assignment.complete_undecided)
        share = math.ceil(self.batch / self.workers)
        slices = SLICES_OF_A_LANE * share + SLICES_OF_A_TASK * self.resources.stream_tasks_per_worker
        blocks = workers * slices * block
        store = WEIGHTS_KEPT * rates.weights_bytes + blocks
        has = self.cluster.memory_gib_per_node * GIB
        store_has = min(OBJECT_STORE_SHARE * has, OBJECT_STORE_MAX_BYTES)
        batch = share * rates.train_bytes_per_image
        # A worker holds weights, gradients and the state of the optimizer: in the memory of its GPU, else of the node.
        state = rates.weights_bytes + rates.checkpoint_bytes
        on_host = 0.0 if rates.gpu else batch + state
        processes = (workers + actors + tasks) * rates.process_bytes + workers * on_host
        if store > store_has:
            self.warnings.append(
                f"the object store needs {store / GIB:.1f} GiB per node and Ray gives it {store_has / GIB:.1f} "
                f"({OBJECT_STORE_SHARE:.0%} of the memory): objects would spill to disk; take nodes with more memory"
            )
        if processes + store_has > has:
            self.warnings.append(
                f"the processes on a node need {processes / GIB:.1f} GiB, its object store {store_has / GIB:.1f}, and "
                f"the node has {has / GIB:.1f}: take fewer workers and actors per node, or more memory"
            )
        basis = f"extrapolated: {workers} workers, {actors} actors, {tasks} data tasks per node"
        found = [
            Line("object store, per node", store / GIB, "GiB", "extrapolated: blocks in flight, weights"),
            Line("processes, per node", processes / GIB, "GiB", basis),
        ]
        if rates.gpu:
            on_gpu = math.ceil(workers / self.cluster.gpus_per_node) * (batch + state)
            found.append(Line("memory of a GPU", on_gpu / GIB, "GiB", f"extrapolated: {share} images per worker"))
            if self.cluster.gpu_memory_gib is not None and on_gpu > self.cluster.gpu_memory_gib * GIB:
                self.warnings.append(
                    f"a batch does not fit: {share} images per worker need {on_gpu / GIB:.1f} GiB and the GPU has "
                    f"{self.cluster.gpu_memory_gib:g}; take more workers, or a smaller batch or crop"
                )
        return found
