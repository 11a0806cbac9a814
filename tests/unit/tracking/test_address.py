"""Which store a run uses: what can never work is refused before anything starts, and the file lies where it says."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from boxsup_dist.errors import InputError, SettingError, UnwritableFileError
from boxsup_dist.tracking.address import check_tracking_uri, default_tracking_uri, sqlite_path, sqlite_uri
from boxsup_dist.tracking.client import make_client
from boxsup_dist.tracking.tracker import RunTracker


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("/runs/mlruns", "it has no scheme"),
        ("mlruns", "it has no scheme"),
        ("file:///runs/mlruns", "keeps no runs in plain folders"),
        ("localhost:5000", "unknown scheme localhost"),
        ("htp://host:5000", "unknown scheme htp"),
        ("s3://bucket/mlflow", "unknown scheme s3"),
        ("http://", "names no host"),
        ("http:host", "names no host"),
        ("http://host:70000", "a port that does not exist"),
        ("http://[::1", "names no host"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("mysql+nosuchdriver://host/mlflow", "SQLAlchemy cannot open it"),
        ("postgres://host/mlflow", "unknown scheme postgres"),
    ],
)
def test_what_can_never_work_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, uri: str, problem: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(SettingError) as found:
        default_tracking_uri("runs")
    text = str(found.value)
    assert text.startswith("MLflow cannot use this store: ") and problem in text and "\n" not in text
    assert found.value.field == "MLFLOW_TRACKING_URI" and found.value.value == uri


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "https://host/mlflow", "databricks", "databricks://profile"])
def test_a_store_that_may_be_down_is_not_asked(uri: str) -> None:
    check_tracking_uri(uri)


def test_plain_folders_are_allowed_by_mlflows_own_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    check_tracking_uri("file:///runs/mlruns")


def database(path: Path, revision: str) -> str:
    with sqlite3.connect(path) as connection:
        connection.execute("create table alembic_version (version_num text)")
        connection.execute("insert into alembic_version values (?)", (revision,))
    return sqlite_uri(str(path))


def test_a_database_of_a_newer_mlflow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"a newer MLflow wrote the database \(its schema is ffffffffffff\)"):
        check_tracking_uri(database(tmp_path / "new.db", "ffffffffffff"))
    check_tracking_uri(database(tmp_path / "known.db", "451aebb31d03"))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(SettingError, match="a folder is in place of the database"):
        check_tracking_uri(sqlite_uri(str(tmp_path / "folder.db")))
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(SettingError, match="SQLite answers: file is not a database"):
        check_tracking_uri(sqlite_uri(str(tmp_path / "text.db")))
    (tmp_path / "empty.db").touch()
    check_tracking_uri(sqlite_uri(str(tmp_path / "empty.db")))
    with pytest.raises(UnwritableFileError, match=r"text\.db/runs; found: 'Not a directory'"):
        check_tracking_uri(sqlite_uri(str(tmp_path / "text.db" / "runs" / "mlflow.db")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.db", "folder.db", "text.db"]


@pytest.mark.parametrize("name", ["runs", "a?key=1", "a#b", "a%41b", "a b", "100%", "ä+é", "a&b;c"])
def test_paths_come_back_from_their_uri(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name / "mlflow.db")
    assert sqlite_path(sqlite_uri(path)) == path
    assert sqlite_path("http://host/x") is sqlite_path("sqlite://") is None


def test_the_database_and_the_artifacts_lie_in_a_runs_folder_with_odd_characters(tmp_path: Path) -> None:
    """A ? begins the options of a database's URI, a % a code, and a # the fragment of a URI."""
    root = tmp_path / "a?key=1 #2 %41"
    tracker = RunTracker(str(root), system_metrics=False)
    tracker.start("e", "r", id_uri=str(root / "run" / "mlflow_run_id"))
    tracker.log_artifact("x.txt", b"x")
    assert tracker.close(60)
    assert [path.name for path in tmp_path.iterdir()] == [root.name]
    assert sorted(path.name for path in root.iterdir()) == ["mlartifacts", "mlflow.db", "run"]
    assert [path.read_text() for path in root.rglob("x.txt")] == ["x"]


def test_a_database_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow cannot repair tables that are half made: a full disk or a kill would leave the runs folder unusable."""
    from alembic import command

    def fail(config: object, revision: str) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "runs" / "mlflow.db"
    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", fail)
        with pytest.raises(Exception, match="No space left"):
            make_client(sqlite_uri(str(path)))
    assert list(path.parent.iterdir()) == []
    make_client(sqlite_uri(str(path))).search_experiments()
    assert list(path.parent.iterdir()) == [path]


def test_a_database_that_an_older_version_left_half_made_is_refused(tmp_path: Path) -> None:
    uri = database(tmp_path / "half.db", "451aebb31d03")
    with sqlite3.connect(tmp_path / "half.db") as connection:
        connection.execute("create table _alembic_tmp_params (key text)")
    with pytest.raises(SettingError, match=r"while it made the tables.*delete the file if it holds no runs yet"):
        check_tracking_uri(uri)


def test_a_full_disk_under_the_database_is_a_warning_of_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """SQLite's own limit of pages stands for the disk. The run goes on; MLflow's page of trace is not shown."""
    uri = sqlite_uri(str(tmp_path / "mlflow.db"))
    client = make_client(uri)
    with client._tracking_client.store.engine.connect() as connection:  # as many pages as there are
        pages = connection.exec_driver_sql("pragma page_count").scalar()

    from sqlalchemy import event

    @event.listens_for(client._tracking_client.store.engine, "checkout")
    def limit(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute(f"pragma max_page_count = {pages}")

    tracker = RunTracker(str(tmp_path), uri, system_metrics=False)
    tracker.start("e", "r")
    for step in range(5):
        tracker.log_metrics({f"metric {i}": 1.0 for i in range(500)}, step)
    assert not tracker.close(20)
    texts = [record.getMessage() for record in caplog.records if record.name.startswith("boxsup_dist")]
    full = [text for text in texts if "database or disk is full" in text]
    assert full and str(tmp_path / "mlflow.db") in full[0] and "it will be tried again" in full[0]
    assert all("\n" not in text and "INSERT" not in text for text in texts)
    assert "Traceback" not in caplog.text + capfd.readouterr().err


def test_a_refusal_takes_no_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No server is asked and MLflow is not imported."""
    started = time.perf_counter()
    with pytest.raises(InputError):
        check_tracking_uri(database(tmp_path / "new.db", "ffffffffffff"))
    assert time.perf_counter() - started < 2
