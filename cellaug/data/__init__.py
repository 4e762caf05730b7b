"""Labelled images: opening, splitting, reading.

`cellaug.data.reader.Reader` feeds them to Keras and is imported on its own, because it is heavy.
"""

from cellaug.data.catalogue import DataError, Dataset, concat, locate, open_dataset
from cellaug.data.images import read_image, to_float, to_uint8
from cellaug.data.splits import load_splits, save_splits, split

__all__ = [
    "DataError",
    "Dataset",
    "concat",
    "load_splits",
    "locate",
    "open_dataset",
    "read_image",
    "save_splits",
    "split",
    "to_float",
    "to_uint8",
]
