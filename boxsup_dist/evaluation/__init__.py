"""Exact metrics of networks and of label maps, and the figures drawn from a run."""
