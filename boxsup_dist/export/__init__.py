"""Predictions and training labels as files for others: PNGs, overlays, probabilities, COCO JSON, submissions."""
