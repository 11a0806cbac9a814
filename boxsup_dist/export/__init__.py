"""Export: predictions and training labels as files: PNGs, overlays, probabilities, COCO JSON, submissions."""
