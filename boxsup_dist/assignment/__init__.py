"""Assignment: which candidate segment each box takes, by its cost; the reassignment between epochs."""
