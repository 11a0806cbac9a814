"""Readers of data sets and the job that writes them as one records table."""
