"""Changes of batches: shapes and labels stay, a generator alone decides, and the mixtures weigh what they mix."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from repl_fx.errors import BadInput
from repl_fx.training.data.augmentation import Change, CropAndFlip, CutMix, Mixup, Normalise


def pictures(n: int = 6, size: int = 8) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(1, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(0))
    return drawn.to(torch.uint8), torch.arange(n) % 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CHANGES = [
    CropAndFlip(2),
    Normalise((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)),
    Mixup(4, 0.8),
    CutMix(4),
]


@pytest.mark.parametrize("change", CHANGES, ids=repr)
def test_a_generator_alone_decides_and_arguments_stay(change: Change) -> None:
    inputs, targets = pictures()
    before = inputs.clone(), targets.clone()
    state = torch.get_rng_state()
    one, same, other = (change(inputs, targets, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one[0], same[0]) and torch.equal(one[1], same[1])
    assert torch.equal(one[0], other[0]) == isinstance(change, Normalise)
    assert one[0].shape == inputs.shape and len(one[1]) == len(targets)
    assert torch.equal(inputs, before[0]) and torch.equal(targets, before[1])
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=25, deadline=None)
@given(padding=st.integers(0, 4), size=st.integers(1, 7), seed=st.integers(0, 99), integers=st.booleans())
def test_crops_are_windows_of_the_padded_picture(padding: int, size: int, seed: int, integers: bool) -> None:
    inputs, targets = pictures(3, size)
    inputs = inputs if integers else inputs.float()
    changed, labels = CropAndFlip(padding)(inputs, targets, seeded(seed))
    assert changed.dtype == inputs.dtype and torch.equal(labels, targets)
    padded = torch.nn.functional.pad(inputs, (padding,) * 4)
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)
    for picture, own in zip(changed, windows, strict=True):
        candidates = own.permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size)
        both = torch.cat((candidates, candidates.flip(-1)))
        assert (both == picture).flatten(1).all(1).any()


def test_half_of_the_pictures_are_mirrored_and_none_without() -> None:
    inputs, targets = pictures(400, 4)
    mirrored = CropAndFlip(0)(inputs, targets, seeded(0))[0] != inputs
    # Within five standard deviations of one half.
    assert 150 < int(mirrored.flatten(1).any(1).sum()) < 250
    assert torch.equal(CropAndFlip(0, flip=False)(inputs, targets, seeded(0))[0], inputs)


def test_normalised_channels() -> None:
    inputs, targets = pictures()
    scaled = inputs.double() / 255
    mean, std = (tuple(f((0, 2, 3)).tolist()) for f in (scaled.mean, partial(scaled.std, correction=0)))
    changed, _ = Normalise(mean, std)(inputs, targets, seeded(0))
    assert changed.dtype == torch.float32
    assert changed.mean((0, 2, 3)).abs().max() < 1e-5 and (changed.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4
    assert torch.equal(Normalise()(inputs, targets, seeded(0))[0], inputs.float() / 255)
    # Floats have no grey levels.
    assert torch.equal(
        Normalise((1.0,), (2.0,))(torch.full((1, 1, 1, 1), 5.0), targets, seeded(0))[0].flatten(), torch.tensor([2.0])
    )


@pytest.mark.parametrize("mixture", [Mixup(6), CutMix(6)], ids=repr)
def test_targets_have_the_weights_of_the_inputs(mixture: Change) -> None:
    # Picture i is i everywhere, so that the mean of a mixed picture is that of its labels.
    inputs = torch.arange(6.0)[:, None, None, None].expand(6, 1, 8, 8)
    mixed_any = False
    for seed in range(20):
        mixed, weights = mixture(inputs, torch.arange(6), seeded(seed))
        assert weights.shape == (6, 6) and torch.allclose(weights.sum(1), torch.ones(6))
        assert torch.allclose(mixed.mean((1, 2, 3)), weights @ torch.arange(6.0), atol=1e-5)
        mixed_any |= bool((weights.max(1).values < 0.9).any())
        again = mixture(inputs, torch.eye(6), seeded(seed))[1]
        assert torch.equal(again, weights)
    assert mixed_any


def test_a_cut_is_one_rectangle() -> None:
    inputs = torch.arange(4.0)[:, None, None, None].expand(4, 1, 8, 8)
    for seed in range(20):
        changed = (CutMix(4)(inputs, torch.arange(4), seeded(seed))[0] != inputs)[:, 0].any(0)
        rows, columns = changed.any(1), changed.any(0)
        assert torch.equal(changed, rows[:, None] & columns)
        for side in (rows, columns):
            places = side.nonzero().flatten()
            assert len(places) == 0 or len(places) == places[-1] - places[0] + 1


def test_the_area_of_a_cut_is_the_share_that_goes() -> None:
    inputs = torch.arange(4.0)[:, None, None, None].expand(4, 1, 64, 64)
    whole = 0
    for seed in range(60):
        # The same generator gives both mixtures the same share.
        mixed = Mixup(4)(inputs, torch.arange(4), seeded(seed))[1]
        cut = CutMix(4)(inputs, torch.arange(4), seeded(seed))[1]
        moved = mixed.diagonal() < 1
        if not moved.any():
            continue
        first = int(moved.nonzero()[0])
        gone, area = (1 - float(weights[first, first]) for weights in (mixed, cut))
        assert area <= gone + 1e-6
        # Of a cut inside of the picture, each side is rounded down to an even number of pixels.
        whole += 0.1 < gone < 0.7 and area >= (gone**0.5 - 2 / 64) ** 2
    assert whole > 5


def test_shares_follow_the_beta_distribution() -> None:
    inputs = torch.arange(2.0)[:, None]
    for alpha in (0.2, 1.0, 5.0):
        shares = []
        for seed in range(800):
            weights = Mixup(2, alpha)(inputs, torch.arange(2), seeded(seed))[1]
            # Where a picture is its own partner, the share does not show.
            if weights[0, 0] < 1:
                shares.append(float(weights[0, 0]))
        variance = 1 / (4 * (2 * alpha + 1))
        assert abs(float(torch.tensor(shares).var()) - variance) < 0.25 * variance


def test_options_that_cannot_be() -> None:
    for alpha in (0.0, -1.0):
        with pytest.raises(BadInput, match=f"alpha is {alpha}"):
            CutMix(10, alpha)
    with pytest.raises(BadInput, match="padding is -1"):
        CropAndFlip(-1)
    for std in ((), (0.0,)):
        with pytest.raises(BadInput, match="give one of each for a channel, std above 0"):
            Normalise((0.5,), std)


def test_masks_move_with_their_pictures_and_have_no_class_where_zeros_come_in() -> None:
    # Each pixel tells its class: a picture and its mask must still agree.
    masks = torch.randint(1, 200, (16, 5, 7))
    pictures = masks[:, None].to(torch.uint8)
    changed, moved = CropAndFlip(2)(pictures, masks, torch.Generator().manual_seed(0))
    assert moved.dtype == torch.int64 and not torch.equal(moved, masks)
    assert torch.equal(torch.where(moved == 255, 0, moved), changed[:, 0].long())
    assert torch.equal(moved == 255, changed[:, 0] == 0) and bool((moved == 255).any())
    assert torch.equal(CropAndFlip(2)(pictures, masks[:, 0, 0], torch.Generator().manual_seed(0))[0], changed)
