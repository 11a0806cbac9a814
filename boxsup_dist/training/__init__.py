"""Training: the order of an epoch, the stream of its images, their augmentation, and the loop of the train workers."""
