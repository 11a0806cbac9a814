"""The training stream, its augmentation and schedule, and the loop of the train workers."""
