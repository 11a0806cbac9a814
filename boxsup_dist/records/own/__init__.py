"""Readers of boxes that people drew themselves: one module per file format, `reader.py` makes records of all."""
