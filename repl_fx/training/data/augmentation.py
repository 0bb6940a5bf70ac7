"""Changes of batches on their device: crops, mirrors, mixtures, normalisation; a generator alone decides which.

Every class here is a change: a callable (inputs, targets, generator) -> (inputs, targets) that leaves its arguments as
they were. The mixtures of torchvision 0.29 (`transforms.v2.MixUp`, `CutMix`) draw from the global random state, on
which a run that is resumed cannot rely; they mix each input with the one before it in place of a drawn one, and refuse
all but pictures. Its crops (`RandomCrop`) are the same for all pictures of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from repl_fx._torch import standard_gamma
from repl_fx.errors import BadInput
from repl_fx.training.data.targets import IGNORED

Change = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class CropAndFlip:
    """Shift each picture by up to `padding` pixels both ways, zeros coming in, and mirror every other one.

    Targets that are masks move with their pictures; where zeros come in, they have no class.

    Attributes:
        padding: zeros around a picture, in pixels, of which a crop of the old size is taken at random.
        flip: whether a picture is mirrored, left to right, with probability 1/2.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise BadInput(f"padding is {self.padding}; give 0 or more pixels")

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change pictures (n, channels, height, width) of any dtype; the generator is of their device.

        Masks are targets (n, height, width).
        """
        n, channels, height, width = inputs.shape
        device, padding = inputs.device, self.padding
        down, right = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator, device=device)
        rows = down + torch.arange(height, device=device)
        columns = torch.arange(width, device=device).expand(n, width)
        if self.flip:
            mirrored = torch.rand((n, 1), generator=generator, device=device) < 0.5
            columns = torch.where(mirrored, width - 1 - columns, columns)
        columns = columns + right
        padded = F.pad(inputs, (padding,) * 4)
        picture = torch.arange(n, device=device)[:, None, None, None]
        channel = torch.arange(channels, device=device)[None, :, None, None]
        rows, columns = rows[:, None, :, None], columns[:, None, None, :]
        if targets.ndim == 3:
            masks = F.pad(targets, (padding,) * 4, value=IGNORED)
            targets = masks[picture[:, 0], rows[:, 0], columns[:, 0]]
        return padded[picture, channel, rows, columns], targets


@dataclass(frozen=True)
class Normalise:
    """Pixels in uint8 as float32, divided by 255; then less the mean of their channel, by its deviation.

    Attributes:
        mean, std: one value for each channel; without them, all that is not uint8 stays as it is.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or any(value <= 0 for value in self.std):
            raise BadInput(f"mean {self.mean} and std {self.std}; give one of each for a channel, std above 0")

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change (n, channels, height, width), or any shape where mean is empty; the generator is not used."""
        scaled = _as_float(inputs) if inputs.dtype == torch.uint8 else inputs
        if self.mean:
            scaled = (scaled - _per_channel(self.mean, inputs.device)) / _per_channel(self.std, inputs.device)
        return scaled, targets


@dataclass(frozen=True)
class _Mixture:
    """Options of both mixtures.

    Attributes:
        classes: number of classes.
        alpha: of the Beta distribution of the share that a picture keeps of itself.
    """

    classes: int
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.alpha <= 0:
            raise BadInput(f"alpha is {self.alpha}; give a number above 0, or leave the mixture out")

    def _draw(self, inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The share, a scalar, and the partner of each picture; both stay on the device: reading one would wait."""
        gammas = standard_gamma(torch.full((2,), self.alpha, dtype=torch.float64, device=inputs.device), generator)
        partner = torch.randperm(len(inputs), generator=generator, device=inputs.device)
        return (gammas[0] / gammas.sum()).float(), partner

    def _targets(self, targets: Tensor, share: Tensor, partner: Tensor) -> Tensor:
        if not targets.is_floating_point():
            targets = F.one_hot(targets, self.classes).float()
        return share * targets + (1 - share) * targets[partner]


@dataclass(frozen=True)
class Mixup(_Mixture):
    """Weighted means of pairs of inputs, and of their targets.

    x' = s x_i + (1 - s) x_j and y' = s y_i + (1 - s) y_j, with s from Beta(alpha, alpha), one for a batch, and j a
    permutation of the batch: Zhang et al. 2018, arXiv:1710.09412, section 2 and figure 1.
    """

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix inputs (n, ...); targets become probabilities, (n, classes)."""
        share, partner = self._draw(inputs, generator)
        scaled = _as_float(inputs)
        return share * scaled + (1 - share) * scaled[partner], self._targets(targets, share, partner)


@dataclass(frozen=True)
class CutMix(_Mixture):
    """A rectangle of each picture from another one, and the targets by area.

    The rectangle has the sides W sqrt(1 - s) and H sqrt(1 - s), with s from Beta(alpha, alpha), around a centre that is
    uniform in the picture, and is cut off at its border; y' = a y_i + (1 - a) y_j, with a the share of the area that is
    left: Yun et al. 2019, arXiv:1905.04899, equations 1 and 2, and the code in appendix A. One rectangle for a batch.
    """

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix pictures (n, channels, height, width) of any dtype; targets become probabilities, (n, classes)."""
        share, partner = self._draw(inputs, generator)
        sides = []
        for size in inputs.shape[-2:]:
            centre = torch.randint(0, size, (), generator=generator, device=inputs.device)
            half = (size * (1 - share).sqrt() / 2).long()
            place = torch.arange(size, device=inputs.device)
            sides.append((place >= centre - half) & (place < centre + half))
        rows, columns = sides
        cut = rows[:, None] & columns[None, :]
        left = 1 - cut.float().mean()
        return torch.where(cut, inputs[partner], inputs), self._targets(targets, left, partner)


@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One value for each channel, (channels, 1, 1); kept, as every copy to a device waits for the device."""
    # The first batch may be one of an evaluation, whose tensors would not do for training.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)[:, None, None]


def _as_float(inputs: Tensor) -> Tensor:
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.float()
