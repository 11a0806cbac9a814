"""Faults made on purpose, and how a run survives them: python -m jobs.drill [NAME]."""
