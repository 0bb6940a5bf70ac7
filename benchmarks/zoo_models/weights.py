"""Weights that let every operator of a model count."""

from __future__ import annotations

import torch
from torch import nn


def wake(model: nn.Module) -> None:
    """Replace initial values that hide what lies behind them.

    Many models start a head, the last norm of a branch or a layer scale at or near zero, so that their blocks compute
    nothing at first. A comparison of outputs or gradients would then compare nothing either.

    Args:
        model: changed in place; needs random weights, for which the caller seeds the generator.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point() or parameter.numel() == 0:
                continue
            constant = bool((parameter == parameter.flatten()[0]).all())
            if not constant or abs(float(parameter.flatten()[0])) > 0.2:
                continue
            if parameter.ndim >= 2 and parameter.numel() > max(parameter.shape):
                nn.init.normal_(parameter, std=0.02)
            elif not name.endswith("bias"):
                # The weight of a norm, a layer scale, a gain.
                nn.init.uniform_(parameter, 0.4, 0.6)
