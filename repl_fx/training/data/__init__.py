"""Data sets to train on, by name or by path, and loaders whose batches a seed fixes."""

from repl_fx.training.data.augmentation import CropAndFlip
from repl_fx.training.data.data_set import Data, Tensors, UserData
from repl_fx.training.data.sets import known_data, load_data

__all__ = ["CropAndFlip", "Data", "Tensors", "UserData", "known_data", "load_data"]
