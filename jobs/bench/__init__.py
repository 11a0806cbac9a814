"""Measurements of what the design claims: python -m jobs.bench [NAME]."""
