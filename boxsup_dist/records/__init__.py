"""Records: readers of the data sets, the synthetic data set, and the build of a records table from a reader."""
