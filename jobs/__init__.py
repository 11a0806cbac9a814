"""Commands, one per file: `python -m jobs` lists them, `python -m jobs.NAME` runs one."""
