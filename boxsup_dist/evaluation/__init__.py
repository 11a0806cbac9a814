"""Evaluation: exact metrics of networks and of label maps against ground truth."""
