"""Which candidate segment each box takes: cost, selection, and the reassignment between epochs."""
