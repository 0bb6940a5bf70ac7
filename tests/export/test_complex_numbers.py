"""Tests for repl_fx.export.complex_numbers: both parts compute what the numbers do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.export.complex_numbers import istft
from repl_fx.export.lowering import lower_
from tests.exporting import Exported


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hop_length": 3, "win_length": 12, "normalized": True},
        {"hop_length": 2, "length": 21},
        {"hop_length": 2, "length": 60},
        {"hop_length": 4, "win_length": 11, "onesided": True, "length": 40},
    ],
)
@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.filterwarnings("ignore:A window was not provided", "ignore:The length of signal is shorter")
def test_a_signal_of_its_spectra(lead: tuple[int, ...], settings: dict[str, Any]) -> None:
    spectra = torch.randn(*lead, 9, 12, dtype=torch.complex128)
    window = torch.rand(settings.get("win_length", 16), dtype=torch.float64) + 0.5
    for given in (None, window):
        if given is None and "win_length" in settings:
            continue
        wanted = torch.istft(spectra, 16, window=given, **settings)
        torch.testing.assert_close(istft(spectra, 16, window=given, **settings), wanted)


class Denoiser(nn.Module):
    """Changes the spectra of a signal (batch, 64), some of which it puts back as zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(8, 1, 2))
        self.register_buffer("window", torch.hann_window(16))

    def forward(self, x: Tensor) -> Tensor:
        window = self.get_buffer("window")
        spectra = torch.stft(x, 16, 4, window=window, normalized=True, return_complex=True)
        changed = torch.view_as_complex(torch.view_as_real(spectra[:, :-1, 2:-2]) * self.gain)
        spectra = nn.functional.pad(nn.functional.pad(changed, [0, 0, 0, 1]), [2, 2])
        return torch.istft(spectra, 16, 4, window=window, normalized=True, length=64)


@pytest.mark.slow
def test_a_signal_that_is_changed_in_its_spectra_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 64)
    gm = repl_fx.capture(Denoiser(), (x,))
    assert Exported(gm, tmp_path / "m.onnx", (x,)).verify()


class Vocoder(nn.Module):
    """Makes a signal of its spectra's sizes and angles, as the head of Vocos does."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        size, angle = self.head(x).transpose(1, 2).chunk(2, dim=1)
        spectra = size.exp() * (torch.cos(angle) + 1j * torch.sin(angle))
        signal: Tensor = torch.fft.irfft(spectra, 8, dim=1) * torch.hann_window(8)[None, :, None]
        return signal


@pytest.mark.slow
def test_a_signal_that_is_made_of_sizes_and_angles_is_exported(tmp_path: Path) -> None:
    x = torch.randn(2, 7, 6)
    check = Exported(repl_fx.capture(Vocoder(), (x,)), tmp_path / "m.onnx", (x,)).verify()
    assert check and not check.skipped


@pytest.mark.parametrize(
    ("function", "lowered"),
    [
        (lambda z: torch.istft(z, 8, 2), True),
        (lambda z: torch.istft(z, 8, 2, onesided=True), True),
        (lambda z: torch.istft(z[:, :4], 4, 2), True),
        (lambda z: torch.istft(z[:, :4], 4, 2, return_complex=True, onesided=False), False),
        (lambda z: nn.functional.pad(z, [1, 2]), True),
        (lambda z: nn.functional.pad(z, [1, 2], value=0.0), True),
        (lambda z: nn.functional.pad(z, [1, 2], value=1.0), False),
        (lambda z: nn.functional.pad(z, [1, 2], mode="circular"), False),
        (lambda z: nn.functional.pad(z.real, [1, 2]), False),
        (lambda z: z.real * (z.imag.cos() + 1j * z.imag.sin()), True),
        (lambda z: z.real[:, :1] + z, True),
        (lambda z: z.real + (2 - 0.5j), True),
        (lambda z: z.real * 2 + 1, False),
    ],
)
@pytest.mark.filterwarnings("ignore:A window was not provided")
def test_complex_numbers_that_are_lowered(function: Callable[[Tensor], Tensor], lowered: bool) -> None:
    class Model(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return function(z)

    torch.manual_seed(0)
    z = torch.randn(3, 5, 12, dtype=torch.complex64)
    gm = torch.export.export(Model(), (z,)).module()
    assert isinstance(gm, fx.GraphModule)
    done = lower_(gm)
    assert done.modified is lowered
    gm.recompile()
    torch.testing.assert_close(gm(z), function(z))


class StateSpace(nn.Module):
    """A long convolution with the kernel of a diagonal state space, as S4D makes it: (batch, 3, length)."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.decay = nn.Parameter(torch.rand(3, 1) - 3), nn.Parameter(torch.rand(3, 4))
        self.turn, self.out = nn.Parameter(torch.rand(3, 4) * 3), nn.Parameter(torch.randn(3, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        poles = -self.decay.exp() + 1j * self.turn
        scaled = poles * self.step.exp()
        out = torch.view_as_complex(self.out) * (scaled.exp() - 1.0) / poles
        powers = (scaled.unsqueeze(-1) * torch.arange(length)).exp()
        kernel = 2 * torch.einsum("hn,hnl->hl", out, powers).real
        spectra = torch.fft.rfft(x, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
        made: Tensor = torch.fft.irfft(spectra, n=2 * length)
        return made[..., :length]


class Mirrored(nn.Module):
    """Uses the conjugates of spectra."""

    def forward(self, x: Tensor) -> Tensor:
        spectra = torch.fft.fft(x)
        made: Tensor = (spectra * spectra.conj()).real + spectra.conj().imag
        return made


@pytest.mark.parametrize("net", [StateSpace, Mirrored])
def test_powers_sums_of_products_and_conjugates_are_exported(net: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16)
    check = Exported(repl_fx.capture(net(), (x,)), tmp_path / "m.onnx", (x,)).verify()
    assert check and any("17" in row.sizes for row in check.rows)
