"""A LightningModule of a user's own: `file.py:CLASS`, for any task that has none here."""

from __future__ import annotations

import pytorch_lightning as pl
from torch import nn

from repl_fx.arguments import in_words
from repl_fx.errors import BadInput
from repl_fx.training.data.user_code import called

DEFAULT = "Module"


def user_module(spec: str, model: nn.Module) -> pl.LightningModule:
    """Call the class of `file.py:CLASS`, or `Module` of `file.py`, with the model to train.

    Raises:
        BadInput: no such file or class, its code raises, or the result is no LightningModule that holds the model.
    """
    made, where, _ = called(spec, DEFAULT, model)
    if not isinstance(made, pl.LightningModule):
        raise BadInput(f"{where} made {in_words(made)}; give a LightningModule of the package pytorch_lightning")
    if not any(module is model for module in made.modules()):
        raise BadInput(f"{where} does not keep the model it is given; set it as an attribute of the LightningModule")
    return made
