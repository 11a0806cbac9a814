"""BoxSup (Dai, He, Sun, ICCV 2015) as a distributed training system: segmentation learned from bounding boxes."""

__version__ = "0.1.0"
