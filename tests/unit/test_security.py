"""What comes from outside runs no code, leaves no folder and asks for no absurd memory."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import stat
import struct
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from boxsup_dist.data import tables
from boxsup_dist.data.images import encode_png
from boxsup_dist.data.labels import labels_table, store_labels
from boxsup_dist.data.schema import VOC_CLASSES
from boxsup_dist.data.sources import Mixture, Source, make_units
from boxsup_dist.errors import CheckpointError, InputError, RecordError, TableError, WeightsError
from boxsup_dist.export.images import find_images
from boxsup_dist.export.images import read_image as read_image_to_predict
from boxsup_dist.export.labels import export_unit
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import write_sealed
from boxsup_dist.model import checkpoint, transfer
from boxsup_dist.model.checkpoint import CheckpointState
from boxsup_dist.model.weights import read_state_dict
from boxsup_dist.proposals.hed import load_hed
from boxsup_dist.proposals.imported import import_proposals
from boxsup_dist.proposals.settings import ImportedSettings
from boxsup_dist.records import archives, coco, files, voc
from boxsup_dist.records.archives import Archive
from boxsup_dist.reporting.page import render_report
from boxsup_dist.reporting.text_table import to_html
from boxsup_dist.runs.examples import Example, draw_examples
from boxsup_dist.runs.report import write_report
from boxsup_dist.tracking import models
from tests import devkit
from tests.distributed import tiny

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("boxsup_dist", "jobs", "infra") for path in (ROOT / folder).rglob("*.py"))
# Errors on their way between Ray's processes of one session, which trust each other.
BETWEEN_PROCESSES = {"boxsup_dist/distributed/build.py"}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
LABEL = {"image_id": "a", "box_index": 0, "class_id": 1, "proposal_index": 0, "superpixel_ids": [], "undecided_ids": [],
         "undecided_probability": [],
         "overlap_cost": 0.0, "regression_cost": 0.0, "rank": 0}  # fmt: skip
BAD_NAMES = ["../x", "/etc/passwd", "a/../../x", "a\0b", "..", "a\nb"]


# -- the sources ------------------------------------------------------------------------------------------------------


def calls(path: Path) -> list[tuple[str, dict[str, ast.expr]]]:
    """Name and keywords of every call in a file."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), {k.arg: k.value for k in node.keywords if k.arg}) for node in nodes]


def faults(path: Path) -> list[str]:
    """What a file does that could execute what it reads."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.partition(".")[0] in UNPICKLERS]
    own = path.is_relative_to(ROOT) and str(path.relative_to(ROOT)) in BETWEEN_PROCESSES
    for name, keywords in calls(path):
        last = name.rpartition(".")[2]
        given = {key: ast.unparse(value) for key, value in keywords.items()}
        if name in ("torch.load", "torch.jit.load") and given.get("weights_only") != "True":
            found.append(name)
        if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
            found.append(f"{name} {given}")
        if name in ("eval", "exec", "os.system", "os.popen", "tempfile.mktemp", "pd.read_pickle"):
            found.append(name)
        if name.startswith("yaml.") and name not in ("yaml.safe_load", "yaml.safe_load_all", "yaml.safe_dump"):
            found.append(name)
        if "pickle" in name and last in ("load", "loads") and not own:
            found.append(name)
    return found


def test_no_source_executes_what_it_reads():
    assert len(SOURCES) > 100
    assert {str(path.relative_to(ROOT)): faults(path) for path in SOURCES if faults(path)} == {}
    assert sum(name == "torch.load" for path in SOURCES for name, _ in calls(path)) == 2


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
        "import pickle",
        "from joblib import load",
        "ray.cloudpickle.loads(x)",
        "yaml.load(x)",
        "subprocess.run(x, shell=True)",
        "eval(x)",
        "tempfile.mktemp()",
    ],
)
def test_the_search_of_the_sources_finds(tmp_path, line):
    (tmp_path / "a.py").write_text(line)
    assert faults(tmp_path / "a.py")


def test_files_on_the_way_are_private(tmp_path):
    with tempfile.TemporaryDirectory() as folder:
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    made = {(path.name, name) for path in SOURCES for name, _ in calls(path) if name.startswith("tempfile.")}
    # tests/unit/test_surroundings.py has the modes of its folder.
    private = {("surroundings.py", "tempfile.gettempdir"), ("surroundings.py", "tempfile.mkdtemp")}
    private.add(("session.py", "tempfile.gettempdir"))  # asks how much room there is, and writes nothing
    assert {name for _, name in made - private} == {"tempfile.TemporaryDirectory"} and private < made


# -- files that would run code ----------------------------------------------------------------------------------------


class Writer:
    """Writes a file when it is unpickled without a check."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def malicious(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": Writer(path)}, buffer)
    return buffer.getvalue()


def test_the_malicious_file_does_harm_where_it_is_trusted(tmp_path):
    torch.load(io.BytesIO(malicious(tmp_path / "ran")), weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.fixture
def saved(tmp_path) -> str:
    network = tiny.build_network()
    state = CheckpointState(1, 0, 0, network.spec, network.state_dict(), extra={models.CLASS_NAMES: ["a"]})
    return checkpoint.save(str(tmp_path / "run"), state)


def swap(uri: str, name: str, data: bytes) -> None:
    """Put other content into a checkpoint's file, with the hash that the manifest wants."""
    storage.write_bytes(storage.join(uri, name), data)
    manifest = storage.read_json(storage.join(uri, "manifest.json"))
    manifest["files"][name] = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    storage.write_json(storage.join(uri, "manifest.json"), manifest)


@pytest.mark.parametrize("name", ["model.pt", "training.pt"])
def test_a_malicious_checkpoint_runs_nothing(tmp_path, saved, name):
    swap(saved, name, malicious(tmp_path / "ran"))
    readers: list[Callable[[], object]] = [lambda: checkpoint.load(saved), lambda: models._load_pyfunc(saved)]
    if name == "model.pt":
        spec = tiny.build_network().spec
        readers.append(lambda: checkpoint.load_network(saved))
        readers.append(lambda: transfer.start_network(spec, f"checkpoint:{tmp_path / 'run'}"))
    for read in readers:
        with pytest.raises(CheckpointError, match=rf"holds more than tensors.*{name}.*found: '") as found:
            read()
        assert "mkdir" in str(found.value) or "Weights only load failed" in str(found.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors", "w"])
@pytest.mark.parametrize("reader", [read_state_dict, load_hed])
def test_a_malicious_weight_file_runs_nothing(tmp_path, name, reader):
    (tmp_path / name).write_bytes(malicious(tmp_path / "ran"))
    with pytest.raises(WeightsError, match=r"not a weight file that loads without executing code; file: .*w"):
        reader(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


def test_a_malicious_table_runs_nothing(tmp_path):
    """Ray gives Parquet columns types of its own, whose values, and once whose types, are pickled."""
    import ray.data
    from ray.data.extensions import ArrowPythonObjectArray

    table = tiny.write_records(tmp_path / "records", [tiny.make_record(0, "train")])
    rows = table.read(table.row_groups()[0])
    column = rows.schema.get_field_index("image_id")
    pickled = ArrowPythonObjectArray.from_objects([Writer(tmp_path / "ran")])
    tensor = {"ARROW:extension:name": "ray.data.arrow_tensor"}
    tensor_type = {**tensor, "ARROW:extension:metadata": pickle.dumps(Writer(tmp_path / "ran"))}
    for field, values in (
        (pa.field("image_id", pickled.type), pickled),
        (pa.field("image_id", pa.list_(pa.int8()), metadata=tensor_type), pa.array([[1]], pa.list_(pa.int8()))),
        (pa.field("image_id", pa.binary(), metadata=tensor_type), pa.array([b"x"])),
    ):
        changed = rows.set_column(column, field, values)
        sink = pa.BufferOutputStream()
        pq.write_table(changed, sink)
        data = sink.getvalue().to_pybytes()
        (tmp_path / "records" / "part-00000.parquet").write_bytes(data)
        footer = data[-8 - int.from_bytes(data[-8:-4], "little") :]
        proof = {
            "num_bytes": len(data),
            "footer_bytes": len(footer),
            "footer_sha256": hashlib.sha256(footer).hexdigest(),
        }
        shard = replace(table.shards[0], **proof)  # the manifest is as malicious as its shard
        with pytest.raises(InputError, match="part-00000"):
            replace(table, shards=[shard]).read(table.row_groups()[0])
        labels = store_labels(str(tmp_path / "labels"), [labels_table([LABEL])])
        Path(labels.shard_uri(0)).write_bytes(data)
        with pytest.raises(InputError, match="labels"):
            replace(labels, shards=[replace(labels.shards[0], **proof)]).read(0)
    assert ray.data and not (tmp_path / "ran").exists()


# -- names that would leave their folder ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "/a", "a//b", "a/../b", "..", "./a", *BAD_NAMES])
def test_no_name_leaves_its_folder(name):
    with pytest.raises(InputError, match=r"the name leaves its folder; file: F; field: f; found: "):
        storage.safe_name(name, file="F", field="f")


@pytest.mark.parametrize(
    "file", ["../../etc/passwd", "/etc/passwd", "s3://other/part-00000.parquet", "x/part-00000.parquet"]
)
def test_no_shard_lies_outside_its_table(tmp_path, file):
    tiny.write_records(tmp_path, [tiny.make_record(0, "train")])
    for name in ("manifest.json", "part-00000.json"):
        values = json.loads((tmp_path / name).read_text())
        (values["shards"][0] if name == "manifest.json" else values)["file"] = file
        write_sealed(str(tmp_path / name), {key: value for key, value in values.items() if key != "seal"})
    match = r"no shard of this table; file: .*{}; field: shards.file; found: .*expected: part-00000.parquet"
    with pytest.raises(TableError, match=match.format("manifest.json")):
        tables.open_table(str(tmp_path), "records")
    with pytest.raises(TableError, match=match.format("part-00000.json")):
        tables.finished_shard(str(tmp_path), 0)


def test_a_checkpoints_manifest_reads_no_other_file(tmp_path, saved):
    """Its names are looked up, never opened: what it lists besides is nothing."""
    path = storage.join(saved, "manifest.json")
    manifest = storage.read_json(path)
    outside = tmp_path / "outside.pt"
    outside.write_bytes(malicious(tmp_path / "ran"))
    model = manifest["files"].pop("model.pt")
    storage.write_json(path, manifest | {"files": manifest["files"] | {"../../../outside.pt": model}})
    with pytest.raises(CheckpointError, match=r"damaged.*model\.pt"):
        checkpoint.load(saved)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_image_id_becomes_a_file_elsewhere(tmp_path, name):
    record = replace(tiny.make_record(0, "train"), image_id=f"tiny/{name}")
    table = tiny.write_records(tmp_path / "records", [record])
    with pytest.raises(InputError, match=r"leaves its folder; file: .*records; field: image_id; found: 'tiny/"):
        find_images(str(tmp_path / "records"), str(tmp_path / "out"))
    with pytest.raises(InputError, match="leaves its folder; field: image_id; found: "):
        import_proposals(np.zeros((4, 4, 3), np.uint8), ImportedSettings(str(tmp_path)), image_id=record.image_id)
    proposals = tiny.write_proposals(tmp_path / "proposals", table, [record])
    units = make_units([Source(table, "box", proposals)])
    mixture = Mixture(units, tiny.ASSIGNMENT, tiny.AUGMENT, 0)
    nothing = store_labels(str(tmp_path / "labels"), [labels_table([])])
    match = r"leaves its folder; file: .*records; field: image_id; found: 'tiny/"
    with pytest.raises(InputError, match=match):
        export_unit(0, mixture=mixture, labels=nothing, undecided="ignore", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_no_image_id_becomes_a_figure_elsewhere(tmp_path):
    """Slashes become dashes in the name, so only a NUL has to be refused."""
    table = tiny.write_records(tmp_path, [replace(tiny.make_record(0, "train"), image_id="tiny/a\0b")])
    mixture = Mixture(make_units([Source(table, "mask")]), tiny.ASSIGNMENT, tiny.AUGMENT, 0)
    shown = {"run_dir": str(tmp_path), "num_epochs": 1, "class_names": VOC_CLASSES, "show_ground_truth": False}
    with pytest.raises(InputError, match=r"leaves its folder; file: .*; field: image_id; found: "):
        draw_examples(tiny.build_network().eval(), Example(0, "tiny/a\0b"), mixture=mixture, **shown)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\0b", "..", "a/b"])
def test_no_list_of_images_names_a_file_elsewhere(tmp_path, name):
    (tmp_path / "list.txt").write_text(f"good\n{name}\n")
    match = r"(the name leaves its folder|not a list of image ids); file: .*list.txt; field: line 2; found: "
    with pytest.raises(InputError, match=match):
        voc.read_list(str(tmp_path / "list.txt"))


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_annotation_file_names_an_image_elsewhere(tmp_path, name):
    content = {"images": [{"id": 1, "file_name": name, "height": 4, "width": 4}], "annotations": [], "categories": []}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"leaves its folder; file: .*a.json; field: images.file_name; found: "):
        coco.read_index(str(tmp_path / "a.json"), "all")


@pytest.mark.parametrize("data", ["../../run", "/etc", "data/../.."])
def test_no_mlflow_model_reads_a_checkpoint_elsewhere(tmp_path, monkeypatch, saved, data):
    import mlflow.artifacts

    model = tmp_path / "model"
    model.mkdir()
    flavor = f"flavors:\n  python_function:\n    loader_module: {models.__name__}\n    data: {data}\n"
    (model / "MLmodel").write_text(flavor)
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda artifact_uri, dst_path: str(model))
    with pytest.raises(InputError, match="leaves its folder; file: models:/m/1; field: data; found: "):
        models.fetch_checkpoint("models:/m/1", str(tmp_path), f"sqlite:///{tmp_path}/mlflow.db")


MEMBERS = {
    "link up": ("link", tarfile.SYMTYPE, "../../outside"),
    "absolute link": ("link", tarfile.SYMTYPE, "/etc"),
    "hard link": ("link", tarfile.LNKTYPE, "../../outside"),
    "device": ("device", tarfile.CHRTYPE, ""),
    "pipe": ("pipe", tarfile.FIFOTYPE, ""),
}


@pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
def test_no_member_of_a_tar_reaches_outside(tmp_path, member):
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / "a.tar", "w") as opened:
        info = tarfile.TarInfo(member[0])
        info.type, info.linkname = member[1:]
        opened.addfile(info, io.BytesIO())
    with pytest.raises(InputError, match=r"write outside its folder; file: .*a.tar; field: member; found: "):
        archives.unpack(root, Archive("https://example.org/a.tar", None))
    assert {path.name for path in tmp_path.rglob("*")} == {"root", "a.tar"}


def test_a_link_in_a_zip_is_a_plain_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(info, "/etc/passwd")
    archives.unpack(tmp_path, Archive("https://example.org/a.zip", None))
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").read_text() == "/etc/passwd"


# -- pages ------------------------------------------------------------------------------------------------------------

SCRIPT = "<script>alert('1')</script>"


def test_a_report_shows_what_data_is_called_and_runs_none_of_it(tmp_path):
    run = tmp_path / f"run{SCRIPT.replace('/', '')}"
    summary = {"mean_iou": 1.0, "iou": {SCRIPT: 50.0}, SCRIPT: SCRIPT, "warnings": [SCRIPT], "data": {SCRIPT: [SCRIPT]}}
    storage.write_json(str(run / "summary.json"), summary)
    storage.write_json(str(run / "config.json"), {SCRIPT: {SCRIPT: SCRIPT}})
    row = {"epoch": 1, "train_loss": 1.0, "iou": {SCRIPT: 1.0}, "bad_records": {SCRIPT: SCRIPT}, "warnings": [SCRIPT]}
    storage.write_bytes(str(run / "history.jsonl"), json.dumps(row).encode() + b"\n")
    storage.write_json(str(run / "confusion.json"), {"confusion": [[1, 2], [3, 4]], "class_names": [SCRIPT, "b"]})
    for part in ("javascript:alert(1)", SCRIPT.replace("/", ""), "a#b"):
        storage.write_bytes(str(run / part / "report.html"), b"x")
    figure = encode_png(np.zeros((2, 2), np.uint8))
    storage.write_bytes(str(run / "figures" / f"{SCRIPT.replace('/', '')}.png"), figure)
    page = storage.read_bytes(write_report(str(run))).decode()
    assert "&lt;script&gt;" in page and "<script" not in page
    assert 'href="javascript%3Aalert%281%29/report.html"' in page and 'href="javascript:' not in page
    assert 'href="a%23b/report.html"' in page
    unknown = render_report(SCRIPT, summary={}, history=[{"epoch": 1, SCRIPT: SCRIPT}], config={}, left_out=[SCRIPT])
    assert unknown.count("&lt;script&gt;") >= 5 and "<script" not in unknown


def test_a_table_of_rows_shows_names_and_runs_none_of_them():
    page = to_html([{SCRIPT: SCRIPT}], SCRIPT)
    assert page.count("&lt;script&gt;") == 4 and "<script" not in page


# -- images that would fill the memory --------------------------------------------------------------------------------


def bomb(side: int, kind: str = "PNG") -> bytes:
    """The header of a square image, and hardly a pixel."""
    if kind == "BMP":
        return (
            b"BM"
            + struct.pack("<IHHI", 100, 0, 0, 54)
            + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        )
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(99))),
        (b"IEND", b""),
    )
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_an_absurd_size_is_reported_at_once(tmp_path, kind):
    data = bomb(60_000, kind)
    devkit.write(tmp_path, "a", image=data)
    started = time.monotonic()
    with pytest.raises(RecordError, match=r"the image does not decode; file: .*a.jpg; found: .*3600000000 pixels"):
        voc.read_record(str(tmp_path), "a", "train")
    with pytest.raises(RecordError, match=r"the mask does not decode; file: m; found: .*3600000000 pixels"):
        files.read_mask(data, 30, 40, 21, file="m")
    with pytest.raises(RecordError, match=r"the image is damaged.*3600000000 pixels"):
        read_image_to_predict(data, turn_by_exif=True, max_pixels=25_000_000)
    assert time.monotonic() - started < 10


def test_a_size_that_pillow_still_reads_is_above_the_limit_of_predict():
    with pytest.raises(
        RecordError, match=r"the image is larger than allowed; found: '9000 x 9000'; expected: <= 25000000"
    ):
        read_image_to_predict(bomb(9_000), turn_by_exif=True, max_pixels=25_000_000)


def test_records_open_no_format_that_starts_a_program(tmp_path):
    devkit.write(tmp_path, "a", image=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(RecordError, match=r"the image does not decode; file: .*a.jpg"):
        voc.read_record(str(tmp_path), "a", "train")
