"""Operators on complex numbers, which ONNX does not have, written in operators on their two parts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from repl_fx._torch import OpOverload


def of_complex(node: fx.Node) -> Callable[..., Any] | None:
    """The function that stands in for an operator that takes complex numbers; None where it stays, and for others."""
    name = str(node.target)
    if not isinstance(node.target, OpOverload) or not node.args:
        return None
    if name == "aten.einsum.default":
        operands: Any = node.args[1]
        return products if len(operands) == 2 and _has_complex(operands) else None
    if not _has_complex(node.args[:1]):
        return _TO_COMPLEX.get(name) if _has_complex(node.args[1:]) else None
    if name == "aten.istft.default":
        settings = inspect.signature(istft).bind(*node.args, **node.kwargs).arguments
        return None if settings.get("return_complex") else istft
    if name == "aten.pad.default":
        settings = dict(zip(("mode", "value"), node.args[2:], strict=False)) | node.kwargs
        zeros = settings.get("mode", "constant") == "constant" and not settings.get("value")
        return complex_pad if zeros else None
    if name in _OF_ONE:
        return _OF_ONE[name]
    if _has_complex(node.args[1:]):
        return None
    if str(node.target.overloadpacket) in _OF_PARTS:
        return of_parts(node.target)
    return with_real_part(node.target) if name in _SUMS and isinstance(node.args[1], int | float) else None


def converts_nothing(node: fx.Node) -> bool:
    """Tell whether a node converts a complex tensor to the kind that it has, as `freqs_cis.to(h.device)` does."""
    given = node.all_input_nodes[0].meta.get("val") if str(node.target).startswith("aten.to.") else None
    alike = isinstance(given, Tensor) and given.is_complex() and given.dtype == node.meta["val"].dtype
    return alike and not node.kwargs.get("copy")


def _has_complex(arguments: Sequence[Any]) -> bool:
    values = (argument.meta.get("val") if isinstance(argument, fx.Node) else argument for argument in arguments)
    return any(value.is_complex() if isinstance(value, Tensor) else isinstance(value, complex) for value in values)


def angle(tensor: Tensor) -> Tensor:
    """The angle of complex numbers, by the signs of both parts; the exporter takes -0.0 for 0.0."""
    return torch.atan2(tensor.imag, tensor.real)


def exponential(tensor: Tensor) -> Tensor:
    """A power of e; the exporter raises it to real ones alone."""
    size, turn = tensor.real.exp(), tensor.imag
    return torch.complex(size * turn.cos(), size * turn.sin())


def conjugate(tensor: Tensor) -> Tensor:
    """Complex numbers with the other sign of the imaginary part, which torch keeps as a mark on a view."""
    return torch.complex(tensor.real, -tensor.imag)


def products(equation: str, operands: Sequence[Tensor], **_: Any) -> Tensor:
    """Sums of products of two tensors, of which one or both are complex."""
    one, other = ((t.real, t.imag if t.is_complex() else torch.zeros_like(t)) for t in operands)

    def of(first: Tensor, second: Tensor) -> Tensor:
        return torch.einsum(equation, first, second)

    return torch.complex(of(one[0], other[0]) - of(one[1], other[1]), of(one[0], other[1]) + of(one[1], other[0]))


def complex_pad(tensor: Tensor, pad: Sequence[int], *_: Any, **__: Any) -> Tensor:
    """Zeros around complex numbers, put around both parts; the exporter pads real ones alone."""
    return torch.view_as_complex(torch.nn.functional.pad(torch.view_as_real(tensor), [0, 0, *pad]))


def istft(
    spectra: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Tensor:
    """The real signal of spectra (…, frequencies, frames); ONNX has no such operator.

    Frames are laid over each other, and their sum is divided by that of the squared windows. Of whole spectra the first
    half counts.
    """
    hop, wide = hop_length or n_fft // 4, win_length or n_fft
    frames = torch.fft.irfft(spectra.transpose(-1, -2), n_fft, norm="ortho" if normalized else "backward")
    shape = torch.ones(wide, dtype=frames.dtype, device=frames.device) if window is None else window
    before = (n_fft - wide) // 2
    shape = torch.nn.functional.pad(shape, [before, n_fft - wide - before])
    count = frames.shape[-2]
    whole = n_fft + hop * (count - 1)

    def laid(columns: Tensor) -> Tensor:
        """The sum (batch, 1, 1, whole) of columns (batch, n_fft, frames)."""
        return torch.nn.functional.fold(columns, (1, whole), (1, n_fft), stride=(1, hop))

    squares = laid((shape * shape)[None, :, None].expand(1, -1, count))
    total = laid((frames * shape).transpose(-1, -2).reshape(-1, n_fft, count))
    begin = n_fft // 2 if center else 0
    end = whole - begin if length is None else min(begin + length, whole)
    signal = (total[..., begin:end] / squares[..., begin:end]).reshape(*spectra.shape[:-2], end - begin)
    return signal if length is None else torch.nn.functional.pad(signal, [0, length - (end - begin)])


def of_parts(operator: Callable[..., Any]) -> Callable[..., Any]:
    """An operator on both parts of complex numbers, such as a choice of rows; the exporter has it for real ones."""

    def parted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        real, imaginary = (operator(part, *args, **kwargs) for part in (tensor.real, tensor.imag))
        if isinstance(real, Tensor):
            return torch.complex(real, imaginary)
        return [torch.complex(*both) for both in zip(real, imaginary, strict=True)]

    return parted


def with_real_part(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A sum of complex numbers and one real number; onnxscript takes no constant that is complex."""

    def changed(tensor: Tensor, number: float, **settings: Any) -> Tensor:
        return torch.complex(operator(tensor.real, number, **settings), tensor.imag)

    return changed


def plus_complex(tensor: Tensor, other: Any) -> Tensor:
    """The sum of real numbers and complex ones."""
    real = tensor + other.real
    return torch.complex(real, torch.as_tensor(other.imag, dtype=real.dtype).expand_as(real))


def times_complex(tensor: Tensor, other: Any) -> Tensor:
    """The product of real numbers and complex ones."""
    return torch.complex(tensor * other.real, tensor * other.imag)


_TO_COMPLEX: dict[str, Callable[..., Any]] = {
    "aten.add.Tensor": plus_complex,
    "aten.mul.Tensor": times_complex,
    "aten.mul.Scalar": times_complex,
}
_OF_ONE: dict[str, Callable[..., Any]] = {
    "aten.angle.default": angle,
    "aten.exp.default": exponential,
    "aten._conj.default": conjugate,
    "aten.conj.default": conjugate,
}
_SUMS = ("aten.add.Tensor", "aten.sub.Tensor")
_CHOICES = ("unsqueeze", "expand", "repeat", "repeat_interleave", "select", "index", "index_select", "gather")
# Operators that do the same with both parts of complex numbers, but for those with other complex numbers.
_OF_PARTS = {
    f"aten.{name}" for name in (*_CHOICES, "split", "split_with_sizes", "chunk", "unbind", "detach", "mul", "div")
}
