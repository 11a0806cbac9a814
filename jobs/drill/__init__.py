"""Faults made on purpose, and what a run makes of them: python -m jobs.drill [NAME]."""
