"""Which MLflow store a run uses, and whether it can ever work.

Reads MLFLOW_TRACKING_URI, or uses the SQLite file `mlflow.db` in the runs folder with its artifacts beside it. A server
that is down is waited for (`outbox.py`). What no waiting repairs, such as an unknown scheme, is refused here, before a
run starts.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from boxsup_dist.credentials import has_credentials
from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage

VARIABLE = "MLFLOW_TRACKING_URI"
_DATABASES = ("postgresql", "mysql", "mssql")  # of MLflow, besides sqlite
_EXPECTED = f"http://HOST:PORT of a server, sqlite:////FOLDER/FILE.db, or {VARIABLE} not set"


def default_tracking_uri(runs_root: str) -> str:
    """URI of the store that a run uses when none is named.

    Args:
        runs_root: Folder that holds the run directories. If it is in an object store, ./runs takes its place, because
            SQLite needs a local file.

    Returns:
        MLFLOW_TRACKING_URI if it is set, otherwise that of RUNS_ROOT/mlflow.db.

    Raises:
        SettingError: MLFLOW_TRACKING_URI holds credentials, which summaries would keep and MLflow's errors show; or
            MLflow can never use the store.
        UnwritableFileError: The folder of a new SQLite file cannot be written.
    """
    uri = os.environ.get(VARIABLE) or sqlite_uri(f"{_local_root(runs_root)}/mlflow.db")
    if has_credentials(uri):
        raise SettingError(
            "the URI holds credentials",
            field=VARIABLE,
            value=uri,
            expected="no user, password or token in it: put them in MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or in MLFLOW_TRACKING_TOKEN",
        )
    check_tracking_uri(uri)
    return uri


def default_artifact_root(runs_root: str, tracking_uri: str) -> str | None:
    """Folder for the artifacts of new experiments; None leaves the choice to a store that is not SQLite."""
    return f"{_local_root(runs_root)}/mlartifacts" if tracking_uri.startswith("sqlite") else None


def _local_root(runs_root: str) -> str:
    return storage.absolute(runs_root if storage.is_local(runs_root) else "runs")


def sqlite_uri(path: str) -> str:
    """URI of a SQLite file; `sqlite_path` is the inverse.

    In such a URI ? begins the options and % a code. With the driver in the scheme MLflow leaves the path alone; without
    it MLflow would make the folder of the quoted path.
    """
    quoted = path.replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}" if quoted == path else f"sqlite+pysqlite:///{quoted}"


def sqlite_path(uri: str) -> str | None:
    """The file of a SQLite store; None for another store or a database in memory."""
    scheme, _, rest = uri.partition("://")
    path = unquote(rest.partition("?")[0].removeprefix("/"))
    return storage.absolute(path) if scheme.partition("+")[0] == "sqlite" and path not in ("", ":memory:") else None


def check_tracking_uri(uri: str) -> None:
    """Raise SettingError if MLflow can never use this store; no server is asked."""
    scheme = uri.partition(":")[0].lower() if ":" in uri else ""
    database = scheme.partition("+")[0]
    if scheme in ("http", "https"):
        _check_server(uri)
    elif database == "sqlite":
        _check_sqlite(uri)
    elif database in _DATABASES:
        _check_driver(uri)
    elif scheme == "file" or (scheme == "" and uri != "databricks"):
        # MLflow's own switch for the folders of its old versions
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
            raise _unusable(uri, "MLflow keeps no runs in plain folders any more" if scheme else "it has no scheme")
    elif scheme not in {"", "databricks", *_schemes_of_plugins()}:
        raise _unusable(uri, f"unknown scheme {scheme}")


def _unusable(uri: str, problem: str, expected: str = _EXPECTED) -> SettingError:
    return SettingError(f"MLflow cannot use this store: {problem}", field=VARIABLE, value=uri, expected=expected)


def _schemes_of_plugins() -> set[str]:
    return {point.name for point in importlib.metadata.entry_points(group="mlflow.tracking_store")}


def _check_server(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:  # of brackets or ports
        has_host = False
    if not has_host:
        raise _unusable(uri, "it names no host, or a port that does not exist")


def _check_driver(uri: str) -> None:
    from sqlalchemy.engine import make_url  # here, because few stores need it
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except (ArgumentError, ImportError, ValueError) as error:  # NoSuchModuleError is an ArgumentError
        raise _unusable(uri, f"SQLAlchemy cannot open it ({' '.join(str(error).split())})") from None


def _check_sqlite(uri: str) -> None:
    path = sqlite_path(uri)
    if path is None:
        raise _unusable(uri, "it would keep the runs in memory")
    if not storage.exists(path):
        storage.check_output(os.path.dirname(path))
        return
    if storage.is_folder(path):
        raise _unusable(uri, "a folder is in place of the database's file")
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as connection:
            tables = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
            found = {row[0] for row in connection.execute("select version_num from alembic_version")}
    except sqlite3.DatabaseError as error:
        if "no such table" not in str(error) and "locked" not in str(error):
            raise _unusable(uri, f"SQLite answers: {error}", "another file, or one that SQLite can open") from None
        return  # new, or in use
    if any(name.startswith("_alembic_tmp_") for name in tables):
        expected = "a whole database: delete the file if it holds no runs yet, else take its backup"
        raise _unusable(uri, "MLflow was killed or had no room while it made the tables", expected)
    unknown = sorted(found - _revisions())
    if unknown and _revisions():
        expected = "the MLflow that wrote it or a newer one (pip install --upgrade mlflow), or another database"
        raise _unusable(uri, f"a newer MLflow wrote the database (its schema is {unknown[0]})", expected)


def _revisions() -> set[str]:
    """The database schemas that this MLflow knows; its import would take seconds. Empty if they lie elsewhere."""
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None and spec.submodule_search_locations
    files = Path(spec.submodule_search_locations[0], "store", "db_migrations", "versions").glob("*.py")
    found = (re.search(r'^revision = "(\w+)"', file.read_text(), re.M) for file in files)
    return {match[1] for match in found if match}
