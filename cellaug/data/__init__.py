"""Labelled images; `cellaug.data.reader.Reader`, which needs Keras, is imported on its own."""

from cellaug.data.dataset import Dataset, concat
from cellaug.data.images import read_image, to_float, to_uint8
from cellaug.data.sets import locate, open_dataset
from cellaug.data.splits import load_splits, save_splits, split
from cellaug.data.store import stored
from cellaug.errors import DataError
