"""Data sets to train on, by name or by path, and loaders whose batches a seed fixes."""

from repl_fx.training.data.augmentation import Chain, CropAndFlip, CutMix, Mixup, Normalise
from repl_fx.training.data.kinds import Data, Request, Tensors, UserData
from repl_fx.training.data.loaders import FileLoader, TensorLoader, loader_of
from repl_fx.training.data.sets import known_data, load_data

__all__ = [
    "Chain",
    "CropAndFlip",
    "CutMix",
    "Data",
    "FileLoader",
    "Mixup",
    "Normalise",
    "Request",
    "TensorLoader",
    "Tensors",
    "UserData",
    "known_data",
    "load_data",
    "loader_of",
]
