"""Entry points, one a file: python -m jobs.NAME."""
