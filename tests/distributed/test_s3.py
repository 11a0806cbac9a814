"""Real Ray and a real S3 server: every stage reads and writes s3://, and gives the bytes that local folders give."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import s3fs

from boxsup_dist.assignment.build import build_label_maps
from boxsup_dist.config import OptimizerSettings, SourceSettings, TrainConfig
from boxsup_dist.data import tables
from boxsup_dist.data.labels import open_labels
from boxsup_dist.data.tables import open_table
from boxsup_dist.errors import LeaseError, StorageError, TableError
from boxsup_dist.export.images import find_images
from boxsup_dist.io import lease, storage
from boxsup_dist.model import checkpoint
from boxsup_dist.proposals.build import build_proposals
from boxsup_dist.records import voc
from boxsup_dist.records.build import build_records
from boxsup_dist.records.synthetic import write_synthetic
from boxsup_dist.runs.history import read_history
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.train import train
from jobs import evaluate, export_labels, export_model, figures, predict, reassign, verify
from tests.distributed import slow_build, tiny
from tests.s3_server import FORBIDDEN, PUBLIC, STRICT, S3Server

REPO = Path(__file__).parents[2]
TABLES = {"train": "records", "val": "records", "proposals": "proposals", "label-maps": "label_maps"}


def upload(folder: Path, uri: str) -> None:
    for path in storage.find_files(str(folder)):
        storage.write_file(storage.join(uri, path), folder / path)


def config_of(root: str, run_dir: str) -> TrainConfig:
    """Two epochs of two steps, with a checkpoint after each step."""
    source = SourceSettings(storage.join(root, "train"), "box", storage.join(root, "proposals"))
    return replace(
        tiny.make_config(Path(), Path()),
        run_dir=run_dir,
        sources=(source,),
        val_records=storage.join(root, "val"),
        optimizer=OptimizerSettings(epochs=2, global_batch_size=2, lr=0.01, schedule="poly"),
        checkpoint_every_steps=1,
        keep_checkpoints=100,
    )


def run_pipeline(root: str, devkit: str, *, interrupted: bool) -> None:
    """Every stage; a training that is interrupted stops inside its last epoch and continues."""
    for split in ("train", "val"):
        build_records(storage.join(root, split), voc.open_splits(devkit, split), rows_per_shard=2, row_group_size=2)
    build_proposals(storage.join(root, "proposals"), storage.join(root, "train"), "selective_search")
    build_label_maps(storage.join(root, "label-maps"), storage.join(root, "train"), "grabcut")
    run_dir = storage.join(root, "box")
    config = config_of(root, run_dir)
    train(config)
    if interrupted:
        storage.remove(checkpoint.list_checkpoints(run_dir)[-1])
        storage.remove(storage.join(run_dir, "summary.json"))
        assert train(config)["resumed_from"].endswith("epoch-001-step-00001")

    def out(name: str) -> str:
        return storage.join(root, name)

    reassign.main(reassign.Settings(run_dir, out("reassigned"), num_actors=1))
    images = storage.join(devkit, "JPEGImages")
    predicted = predict.predict(predict.Settings(images, out("predicted"), run_dir, overlays=True, num_actors=1))
    assert predicted["num_predicted"] == 6 and predicted["failed"] == []
    export_labels.export_labels(export_labels.Settings(run_dir, out("exported")))


def contents(root: str, *folders: str) -> dict[str, bytes]:
    found = {}
    for folder in folders:
        uri = storage.join(root, folder)
        found |= {f"{folder}/{path}": storage.read_bytes(storage.join(uri, path)) for path in storage.find_files(uri)}
    return found


def labels(run_dir: str) -> list[str]:
    files = RunFiles(run_dir)
    return [open_labels(files.labels(epoch)).fingerprint for epoch in files.epochs_with_labels()]


def losses(run_dir: str) -> list[float]:
    return [entry.train_loss for entry in read_history(run_dir).values()]


@pytest.fixture(scope="module")
def local(ray_local, s3, tmp_path_factory) -> Path:
    """The pipeline in local folders, its devkit on both sides."""
    folder = tmp_path_factory.mktemp("s3")
    write_synthetic(str(folder / "devkit"), 4, 2)
    upload(folder / "devkit", storage.join(s3.root, "devkit"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_pipeline(str(folder / "runs"), str(folder / "devkit" / "VOC2012"), interrupted=False)
    return folder


@pytest.fixture(scope="module")
def stored(local, s3) -> str:
    """The same on S3, where the training is interrupted."""
    root = storage.join(s3.root, "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(local)
        run_pipeline(root, storage.join(s3.root, "devkit", "VOC2012"), interrupted=True)
    return root


def test_every_stage_gives_on_s3_what_it_gives_in_local_folders(local, stored):
    root = str(local / "runs")
    for name, kind in TABLES.items():
        assert (
            open_table(storage.join(stored, name), kind).fingerprint
            == open_table(storage.join(root, name), kind).fingerprint
        )
    folders = ("box/labels", "reassigned", "predicted/label_maps", "predicted/overlays", "exported/label_maps")
    expected = contents(root, *folders)
    del expected["reassigned/summary.json"]
    assert {name for name in expected if name.startswith("box/") and name.endswith(".json")} == {
        f"box/labels/epoch-{epoch:03d}/manifest.json" for epoch in (1, 2)
    }
    found = contents(stored, *folders)
    assert {name: found.get(name) for name in expected} == expected
    assert losses(storage.join(stored, "box")) == losses(storage.join(root, "box"))
    for folder in ("box", "predicted", "exported"):
        assert storage.find_files(storage.join(stored, folder)) == storage.find_files(storage.join(root, folder))
    assert b"<html" in storage.read_bytes(storage.join(stored, "box", "report.html"))


def test_what_is_on_s3_is_verified_there(stored, capsys):
    tables = [open_table(storage.join(stored, name), kind) for name, kind in TABLES.items()]
    settings = verify.Settings(tuple(table.uri for table in tables), (storage.join(stored, "box"),))
    verify.main(settings)
    rows = sum(table.num_rows for table in tables)
    assert capsys.readouterr().out == f"whole: {len(tables)} tables with {rows} rows, 1 run directory\n"
    shard = tables[0].shard_uri(0)
    data = storage.read_bytes(shard)
    storage.write_bytes(shard, data[:-1])
    with pytest.raises(SystemExit, match="1"):
        verify.main(settings)
    storage.write_bytes(shard, data)
    assert f"file: {shard}; field: num_bytes; found: {len(data) - 1}; expected: {len(data)}" in capsys.readouterr().out


def test_a_run_on_s3_is_evaluated_and_drawn_there(local, stored):
    run_dir, out = storage.join(stored, "box"), storage.join(stored, "evaluated")
    evaluate.main(evaluate.Settings(run_dir, out, records=storage.join(stored, "val"), num_actors=1))
    expected = storage.read_json(str(local / "runs" / "box" / "summary.json"))
    assert storage.read_json(storage.join(out, "summary.json"))["iou"] == expected["iou"]
    figures.main(figures.Settings((run_dir,), storage.join(stored, "figures"), num_images=1, log=False))
    assert any(name.endswith(".png") for name in storage.find_files(storage.join(stored, "figures")))


def test_a_second_prediction_keeps_what_is_there(stored):
    images = storage.join(storage.join(stored.rpartition("/")[0], "devkit", "VOC2012"), "JPEGImages")
    run_dir, out = storage.join(stored, "box"), storage.join(stored, "predicted")
    again = predict.predict(predict.Settings(images, out, run_dir, overlays=True, num_actors=1))
    assert again["num_finished_before"] == 6


def test_runs_on_s3_are_tracked_in_a_local_store(local, stored):
    tracked = storage.read_json(storage.join(stored, "box", "summary.json"))["mlflow"]
    assert tracked["tracking_uri"] == f"sqlite:///{local}/runs/mlflow.db" and tracked["run_id"]


def test_a_network_is_exported_to_s3(stored):
    out = storage.join(stored, "models")
    export_model.main(export_model.Settings(storage.join(stored, "box"), out, num_images=1))
    assert storage.exists(storage.join(out, "model", "MLmodel"))
    for name, values in storage.read_json(storage.join(out, "summary.json"))["formats"].items():
        assert storage.size(storage.join(out, export_model.FILES[name])) == values["num_bytes"] > 0


def test_a_training_through_faults_gives_the_same(s3: S3Server, local, stored, monkeypatch):
    monkeypatch.chdir(local)
    run_dir = storage.join(s3.root, "faulty")
    with s3.faults(0.05, seed=3) as count_faults:
        train(replace(config_of(stored, run_dir), checkpoint_every_steps=2))
        counts = count_faults()
    assert all(count > 0 for count in counts.values()), counts
    assert labels(run_dir) == labels(storage.join(stored, "box"))
    assert losses(run_dir) == losses(storage.join(stored, "box"))


def test_a_training_waits_for_a_store_that_is_away(s3: S3Server, local, stored, monkeypatch, capfd):
    """20 seconds without a server, from the first checkpoint on: the user reads it, and the result is the same."""
    s3.need_faults()
    monkeypatch.chdir(local)
    run_dir = storage.join(s3.root, "away")

    def close_after_first_checkpoint() -> None:
        while not checkpoint.list_checkpoints(run_dir):
            time.sleep(0.05)
        s3.close(20)

    closing = threading.Thread(target=close_after_first_checkpoint)
    closing.start()
    train(config_of(stored, run_dir))
    closing.join()
    assert labels(run_dir) == labels(storage.join(stored, "box"))
    assert losses(run_dir) == losses(storage.join(stored, "box"))
    out, err = capfd.readouterr()
    assert re.search(r"warning: waiting for the store: s3://\S+: \S+: .*; trying for another 9m5\ds\n", err), err
    assert re.search(r"the store answers again after \d+s: s3://boxsup-test\n", err), err
    assert "ended" not in out, "no worker had to start again"


def test_a_build_waits_for_a_store_that_answers_503(s3: S3Server, ray_local, tmp_path, capfd):
    out = storage.join(s3.root, "slow-down")

    def fail_for_a_while() -> None:
        while len(storage.list_names(out)) < 3:
            time.sleep(0.05)
        with s3.faults(1.0, kinds=("slow_down",)):
            time.sleep(8)

    s3.need_faults()
    failing = threading.Thread(target=fail_for_a_while)
    failing.start()
    table = slow_build.build(out, 0.2)
    failing.join()
    assert table.fingerprint == slow_build.build(str(tmp_path / "unbroken")).fingerprint
    assert re.search(rf"warning: waiting for the store: {s3.root}/\S+: (SlowDown|503): ", capfd.readouterr().err)


def test_a_build_killed_on_s3_is_no_table_and_the_next_call_continues(s3: S3Server, local, tmp_path):
    out = storage.join(s3.root, "killed")
    command = [sys.executable, "-m", "tests.distributed.slow_build", out, "0.4"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, stderr=log)

    def finished() -> set[str]:
        return {n for n in storage.list_names(out) if n.startswith("part-") and n.endswith(".json")}

    deadline = time.monotonic() + 120
    while len(finished()) < 3:
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not storage.exists(storage.join(out, tables.MANIFEST))
    with pytest.raises(TableError, match="unfinished"):
        open_table(out, "records")
    expected = slow_build.build(str(tmp_path / "unbroken"))
    assert slow_build.build(out).fingerprint == expected.fingerprint


def test_a_build_reports_a_store_that_refuses_access(ray_local, s3: S3Server):
    with pytest.raises(StorageError, match="no such bucket; file: s3://absent/x"):
        slow_build.build("s3://absent/x")
    assert json.dumps(storage.list_names(s3.root))  # the others are served still
    s3.need_faults()
    message = rf"the store refuses access; file: s3://{FORBIDDEN}/x/build\.json.*AWS_ACCESS_KEY.*FSSPEC_S3_ANON=true"
    with pytest.raises(StorageError, match=message):
        slow_build.build(f"s3://{FORBIDDEN}/x")


# -- what servers do differently --------------------------------------------------------------------------------------


def test_folder_markers_are_no_files(s3: S3Server):
    """Web consoles put an empty object in place of a folder; its key ends in a slash."""
    folder = storage.join(s3.root, "marked")
    for key in ("marked/", "marked/a/", "marked/a/b/", "marked/empty/"):
        s3.put(key)
    for name in ("a/1.jpg", "a/b/2.jpg"):
        storage.write_bytes(storage.join(folder, name), name.encode())
    assert storage.find_files(folder) == ["a/1.jpg", "a/b/2.jpg"]
    assert storage.list_names(folder) == ["a", "empty"] and storage.list_names(storage.join(folder, "empty")) == []
    assert storage.glob_files(storage.join(folder, "**")) == [f"{folder}/a/1.jpg", f"{folder}/a/b/2.jpg"]
    assert storage.glob_files(storage.join(folder, "a/*")) == [f"{folder}/a/1.jpg"]
    assert storage.glob_files(storage.join(folder, "*/*/*.jpg")) == [f"{folder}/a/b/2.jpg"]
    assert storage.size(folder) == len("a/1.jpg" + "a/b/2.jpg")
    assert storage.exists(storage.join(folder, "a")) and not storage.exists(storage.join(folder, "absent"))
    assert [item.name for item in find_images(folder, storage.join(s3.root, "out")).items] == ["a/1", "a/b/2"]
    storage.remove(storage.join(folder, "a"))
    assert storage.find_files(folder) == [] and not storage.exists(storage.join(folder, "a"))
    storage.remove(folder)
    assert not storage.is_folder(folder)


def test_brackets_in_a_name_are_no_pattern_when_it_is_removed(s3: S3Server):
    folder = storage.join(s3.root, "brackets")
    for name in ("run[12]/x", "run1/x", "run*/x"):
        storage.write_bytes(storage.join(folder, name), b"x")
    storage.remove(storage.join(folder, "run[12]"))
    storage.remove(storage.join(folder, "run*", "x"))
    assert storage.find_files(folder) == ["run1/x"]


def test_a_server_that_answers_403_to_head_of_what_is_absent(s3: S3Server):
    s3.need_faults()
    root = f"s3://{STRICT}/x"
    assert not storage.exists(root) and storage.list_names(root) == []
    storage.remove(root)
    storage.write_bytes(f"{root}/a/b", b"x")
    assert storage.exists(f"{root}/a") and not storage.exists(f"{root}/absent")
    storage.remove(root)
    assert storage.find_files(root) == []


def test_a_public_bucket_is_read_without_credentials(s3: S3Server):
    """In a process of its own: fsspec reads the variable once."""
    s3.need_faults()
    s3fs.S3FileSystem(anon=True).call_s3("put_object", Bucket=PUBLIC, Key="x", Body=b"seen", ACL="public-read")
    code = "import sys; from boxsup_dist.io import storage; print(storage.read_bytes(sys.argv[1]))"
    command = [sys.executable, "-c", code, f"s3://{PUBLIC}/x"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_ACCESS")}
    done = subprocess.run(command, cwd=REPO, env={**own, "FSSPEC_S3_ANON": "true"}, capture_output=True, text=True)
    assert done.stdout == "b'seen'\n", done.stderr
    done = subprocess.run(command, cwd=REPO, env=dict(os.environ), capture_output=True, text=True)
    assert "the store refuses access" in done.stderr and "FSSPEC_S3_ANON=true" in done.stderr


def test_a_lease_on_s3_goes_to_one_of_many(s3: S3Server):
    """Thirty-two threads start at once. Without conditional writes each winner looks again, and one stays."""
    folder, said = storage.join(s3.root, "leased"), []

    def start(_: int) -> lease.Lease | None:
        try:
            return lease.acquire(folder, f"{folder}/writer.json", said.append)
        except LeaseError:
            return None

    with ThreadPoolExecutor(32) as threads:
        won = [each for each in threads.map(start, range(32)) if each is not None]
    assert len(won) == 1
    won[0].claim.check()
    won[0].release()
    assert lease.Writer.parse(storage.read_bytes(f"{folder}/writer.json")).released
    assert bool(said) == bool(os.environ.get("BOXSUP_S3RVER"))


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("s3rver") is None, reason="s3rver is not installed: npm install --global s3rver")
def test_the_pipeline_passes_on_s3rver(tmp_path):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "BOXSUP_TEST_S3"))}
    command = [sys.executable, "-m", "pytest", "-q", "tests/distributed/test_s3.py", "-k", "not pipeline"]
    command += ["-p", "no:cacheprovider", "--basetemp", str(tmp_path / "s3rver")]
    done = subprocess.run(command, cwd=REPO, env={**own, "BOXSUP_S3RVER": "s3rver"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
