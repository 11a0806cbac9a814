"""Region proposals: methods, their one encoding, and the job that stores them as a table."""
