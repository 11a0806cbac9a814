"""What a person reads while a run trains: a header, the progress, one line per epoch, and what to do at the end.

The same events go to MLflow from here, because the driver outlives the workers.
"""

from __future__ import annotations

import time

from boxsup_dist.config import OptimizerSettings, Resources, TrainConfig
from boxsup_dist.distributed import session
from boxsup_dist.distributed.events import Event, Stalled
from boxsup_dist.errors import InputError
from boxsup_dist.progress import counted, format_duration
from boxsup_dist.reporting.words import ACTIVITIES, STAGES
from boxsup_dist.runs.events import Begun, Failed, Lost, Measured, Progress, Spent, Starting, Warned
from boxsup_dist.runs.history import HistoryEntry, read_history
from boxsup_dist.runs.inputs import Inputs
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.summary import MlflowRun, Summary
from boxsup_dist.runs.timeline import Account, Timeline
from boxsup_dist.tracking.tracker import RunTracker

PROGRESS_EVERY_S = 10.0
MAX_CLASSES_NAMED = 8
TRAINING_PAGES = "#/experiments?workflowType=machine_learning"  # else MLflow 3 opens runs in pages of language models


class Console:
    """Prints the events of a run and passes them on to the tracker and the account of time."""

    def __init__(self, config: TrainConfig, tracker: RunTracker, timeline: Timeline) -> None:
        self.config, self.tracker, self.timeline = config, tracker, timeline
        self.failure: InputError | None = None
        self._stage: tuple[int, str] | None = None  # of the newest event
        self._stages: dict[tuple[int, str], tuple[float, float]] = {}  # -> when it began, when it was printed last
        self._stepped = False

    def handle(self, event: Event) -> None:
        """Print one event of rank 0; keep the error of a run that failed in `failure`."""
        match event:
            case Starting():
                print(f"  {event.text}", flush=True)
            case Begun():
                self._stages.clear()
                self.timeline.begin(event.epoch, event.steps_done, event.num_workers)
                _print_begin(event)
            case Spent():
                self.timeline.spend(event.epoch, event.step, event.seconds)
            case Progress():
                self._print_progress(event)
            case Measured():
                self.tracker.log_metrics(event.entry.metrics(), step=event.entry.epoch)
                if event.complete:
                    print(epoch_line(event.entry, self.config.optimizer.epochs), flush=True)
            case Warned():
                if isinstance(event, Lost):
                    self.timeline.lose(event.text)
                print(f"warning: {event.text}", flush=True)
            case Stalled():
                self._print_stall(event)
            case Failed():
                self.failure = event.error
            case _:
                raise TypeError(f"no event of a run: {event!r}")

    def _print_progress(self, event: Progress) -> None:
        now, self._stage = time.monotonic(), (event.epoch, event.stage)
        if self._stage not in self._stages:
            self._stages[self._stage] = (now, now)
            if not self._stepped:  # a start takes long: a word on each part of it
                self._stepped = event.stage == "train"
                done = ": the first step is done" if self._stepped else ""
                print(f"  epoch {event.epoch}, {STAGES[event.stage]}{done}", flush=True)
            return
        since, printed = self._stages[self._stage]
        if now - printed < PROGRESS_EVERY_S or event.done == 0:
            return
        self._stages[self._stage] = (since, now)
        left = (now - since) / event.done * (event.total - event.done)
        speed = f"  {event.images_per_s:.1f} images/s" if event.images_per_s else ""
        where = f"epoch {event.epoch}, {STAGES[event.stage]}"
        print(f"  {where}: {event.done}/{event.total}{speed}  left {format_duration(left)}", flush=True)

    def _print_stall(self, event: Stalled) -> None:
        where = "the start of the workers"
        if self._stage is not None:
            epoch, stage = self._stage
            where = f"epoch {epoch}, {STAGES[stage]}"
        print(f"warning: no message for {event.seconds:.0f} s, since {where}; {session.describe()}", flush=True)


def _print_begin(event: Begun) -> None:
    what = "training begins"
    if event.epoch > 1 or event.steps_done:
        what = f"training continues at epoch {event.epoch}, after {counted(event.steps_done, 'step')}"
    print(f"{what}, workers: {event.num_workers}", flush=True)


def epoch_line(entry: HistoryEntry, num_epochs: int) -> str:
    """One line with what a person wants to know of a finished epoch."""
    parts = [f"epoch {entry.epoch}/{num_epochs}"]
    for value, text in (
        (entry.train_loss, "loss {:.3g}"),
        (entry.images_per_s, "{:.1f} images/s"),
        (entry.foreground_share, "predicted foreground {:.1%}"),
        (entry.label_foreground_share, "label maps' foreground {:.1%}"),
        (entry.share_changed, "changed segments {:.1%}"),
        (entry.label_mean_iou, "label maps' mean IoU {:.1f}"),
        (entry.trained_label_mean_iou, "of the pixels trained on {:.1f}"),
        (entry.mean_iou, "validation mean IoU {:.1f}"),
        (entry.box_score, "validation box score {:.1f}"),
    ):
        if value is not None:
            parts.append(text.format(value))
    return "  ".join(parts)


def print_header(config: TrainConfig, inputs: Inputs, tracking_uri: str) -> None:
    """What is about to run, before anything of it starts. `config.resources` are resolved."""
    assert isinstance(config.resources, Resources)
    options, steps, dropped = config.optimizer, inputs.num_steps, inputs.num_left_out
    names = inputs.class_names
    shown = ", ".join(names[:MAX_CLASSES_NAMED]) + (", ..." if len(names) > MAX_CLASSES_NAMED else "")
    lines = {
        "run directory": RunFiles(config.run_dir).run_dir,
        "images": f"{inputs.num_images} to train on"
        + (f" ({dropped} left out: another table of the run has them)" if dropped else "")
        + f", {inputs.num_val_images or 'none'} to evaluate on",
        "classes": f"{len(names)}: {shown}",
        "supervision": config.supervision,
        "steps": f"{steps} per epoch, {steps * options.epochs} in {counted(options.epochs, 'epoch')}, "
        f"{counted(options.global_batch_size, 'image')} each",
        "learning rate": _describe_rate(options, steps * options.epochs),
        **_describe_assignment(config),
        **_describe_resources(config.resources),
        "MLflow": f"{tracking_uri}, experiment {config.experiment}",
    }
    for name, text in lines.items():
        print(f"{name:<14} {text}", flush=True)


def _describe_rate(options: OptimizerSettings, total_steps: int) -> str:
    parts = [f"{options.lr:g}"]
    if options.schedule == "poly":
        parts.append("falls to zero over the run")
    else:
        never = ": never in this run" if options.decay_epochs >= options.epochs else ""
        parts.append(f"divided by 10 every {options.decay_epochs} epochs{never}")
    warmup = options.warmup(total_steps)
    if warmup:
        parts.append(f"warm-up in the first {warmup} of {total_steps} steps")
    return ", ".join(parts)


def _describe_assignment(config: TrainConfig) -> dict[str, str]:
    """Which epochs take segments by the boxes alone, by the network, and with refinement; {} without such a source."""
    if not any(source.supervision in ("box", "wssl_em") for source in config.sources):
        return {}
    warmup, refined, epochs = (
        config.assignment.warmup_epochs,
        config.assignment.refine_from_epoch,
        config.optimizer.epochs,
    )
    text = f"by the boxes alone in the first {warmup} of {epochs} epochs, then with the network"
    if warmup == epochs:
        text = (
            f"by the boxes alone in every epoch: the network does not take part (warm-up: {counted(epochs, 'epoch')})"
        )
    return {"labels": text + (f", refined from epoch {refined}" if refined else "")}


def _describe_resources(resources: Resources) -> dict[str, str]:
    def device(gpus: float) -> str:
        return f"{gpus:g} GPU" if gpus else "CPU"

    workers, actors = resources.num_workers, resources.num_actors
    return {
        "workers": f"{workers}, each on {device(resources.gpus_per_worker)}, threads: {resources.threads_per_worker}",
        "actors": f"{actors}, each on {device(resources.gpus_per_actor)}, threads: {resources.threads_per_actor}",
    }


def print_result(run_dir: str, summary: Summary) -> None:
    """The result of a finished run, and what a person can do with it."""
    files = RunFiles(run_dir)
    result = [f"supervision {summary['supervision']}"]
    if summary["mean_iou"] is not None:
        result.append(f"validation mean IoU {summary['mean_iou']:.2f}")
    if summary.get("box_score") is not None:
        result.append(f"validation box score {summary['box_score']:.2f} (no masks: mean IoU is unknown)")
    label = summary["label_mean_iou"]
    if label is not None:
        result.append(f"label maps' mean IoU {label['first']:.2f} -> {label['last']:.2f}")
    print(f"result         {', '.join(result)}")
    if "time" in summary:
        print(f"time           {_describe_time(summary['time'])}")
    history = read_history(run_dir)
    for text in history[max(history)].warnings if history else ():
        print(f"warning        last epoch: {text}")
    print_where(files.run_dir, summary["mlflow"])


def print_where(run_dir: str, mlflow: MlflowRun) -> None:
    """Lines for the end of a command that trained: report, MLflow, and the next commands."""
    files = RunFiles(run_dir)
    lines = {
        "report": files.report,
        "MLflow": _how_to_open(mlflow),
        "look": f"python -m jobs.gallery --run-dir {files.run_dir} --out FOLDER",
        "next": f"python -m jobs.predict --run-dir {files.run_dir} --images FOLDER --out FOLDER --overlays",
    }
    for name, text in lines.items():
        print(f"{name:<14} {text}", flush=True)


def _describe_time(account: Account) -> str:
    """Where the time went, largest part first; parts below one percent are left out."""
    wall_s = max(account["wall_s"], 1e-9)
    parts = sorted(account["seconds"].items(), key=lambda item: -item[1])
    shares = [f"{ACTIVITIES.get(kind, kind)} {value / wall_s:.0%}" for kind, value in parts if value >= 0.01 * wall_s]
    restarts = len(account["restarts"])
    lost = f"; starts after the first: {restarts}, steps trained again: {account['redone_steps']}" if restarts else ""
    return f"{format_duration(wall_s)}, goodput {account['goodput']:.2f}: {', '.join(shares)}{lost}"


def _how_to_open(mlflow: MlflowRun) -> str:
    uri = mlflow["tracking_uri"]
    if uri.startswith(("http://", "https://")):
        how = f"open {uri.rstrip('/')}/{TRAINING_PAGES}"
    else:
        how = f"mlflow ui --backend-store-uri {uri}, then open http://127.0.0.1:5000/{TRAINING_PAGES}"
    return f"{how} (run {mlflow['run_id']})" if mlflow["run_id"] else f"{how} (MLflow does not have this run yet)"
