"""Read tables and run directories in full, and name every file that is not what was written.

    python -m jobs.verify --tables data/train data/train-proposals
    python -m jobs.verify --run-dir runs/box

The exit status is 1 if something is damaged. With a run directory, the tables of the run are read too.
"""

from __future__ import annotations

from dataclasses import dataclass

from boxsup_dist.data.tables import Table, open_table
from boxsup_dist.errors import InputError, SettingError, StorageError
from boxsup_dist.progress import ProgressMeter, counted
from boxsup_dist.runs.command_line import RunDirs, run


@dataclass(frozen=True)
class Settings:
    """What to read."""

    tables: tuple[str, ...] = ()
    """Folders or URIs of tables. Proposals and label maps are compared with their records if these are named too."""
    run_dirs: RunDirs = ()


def main(settings: Settings) -> None:
    """Print a line for each damaged file, and one at the end."""
    if not settings.tables and not settings.run_dirs:
        raise SettingError("nothing to verify", field="tables, run_dir", expected="a table or a run directory")
    from boxsup_dist.runs import verify

    checks, tables = [], dict[str, Table]()
    for uri in settings.tables:
        try:
            table = open_table(uri, None)
            tables[table.uri] = table
        except StorageError:
            raise
        except InputError as error:
            checks.append(verify.fails_with(error))
    for run_dir in settings.run_dirs:
        found, of_run = verify.run_checks(run_dir)
        checks += found
        tables |= {table.uri: table for table in of_run}
    checks += verify.table_checks(list(tables.values()))
    num_damaged = 0
    with ProgressMeter("verify", len(checks)) as progress:
        for check, problem in zip(checks, verify.find_problems(checks), strict=True):
            if problem is not None:
                num_damaged += 1
                print(f"damaged: {problem}", flush=True)
            progress.advance(check.num_rows)
    if num_damaged:
        print(f"{num_damaged} of {counted(len(checks), 'check')} failed")
        raise SystemExit(1)
    for table in verify.without_records(list(tables.values())):
        print(f"not compared with its records, which are not among --tables: {table.uri}")
    num_rows = sum(table.num_rows for table in tables.values())
    runs = len(settings.run_dirs)
    whole = f"{counted(len(tables), 'table')} with {counted(num_rows, 'row')}"
    print(f"whole: {whole}, {runs} run {'directory' if runs == 1 else 'directories'}")


if __name__ == "__main__":
    run(main)
