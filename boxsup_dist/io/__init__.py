"""Bytes in and out: storage at any URI, retries of remote stores, MATLAB files."""
