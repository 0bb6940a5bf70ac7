"""Operators at the edges of what they are defined for: an ONNX file that computes the same, or a refusal.

Each table holds one kind of input; all of its cases are outputs of one module, so that one export serves them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import ExportError
from repl_fx.export import export_onnx
from tests.exporting import Exported
from tests.releases import fails_on_old_torch

Cases = dict[str, Callable[[Tensor], Any]]

X = torch.tensor([[-2.5, -1.5, -0.5, 0.5], [1.5, 2.5, -0.0, 0.0], [3.0, -3.0, 7.25, 1e-3]])
N = torch.tensor([[-7, 7, -1, 0], [5, -5, 2, -3], [6, -6, 1, 9]])
S = torch.tensor(
    [[math.nan, math.inf, -math.inf, 0.0], [1.0, -0.0, 1e30, -1e30], [0.3, math.nan, -5, 2]],
)
I = torch.randn(2, 4, 7, 8, generator=torch.Generator().manual_seed(0))  # noqa: E741
W = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(1))
W3 = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(2))
WT = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(3))
WD = torch.randn(8, 1, 3, 3, generator=torch.Generator().manual_seed(4))

FLOATS: Cases = {
    "sq": lambda x: x.squeeze(1),
    "sq0": lambda x: x.squeeze(0),
    "sqm": lambda x: x.unsqueeze(1).squeeze((0, 1)),
    "sqall": lambda x: x.unsqueeze(1).squeeze(),
    "sqneg": lambda x: x.squeeze(-1),
    "expand": lambda x: x.unsqueeze(1).expand(-1, 2, -1),
    "expand_new": lambda x: x.expand(2, -1, -1),
    "flat0": lambda x: x.sum().flatten(),
    "unsq_neg": lambda x: x.unsqueeze(-1),
    "slice_end": lambda x: x[:, 1:100],
    "slice_neg": lambda x: x[:, -100:3],
    "slice_empty": lambda x: x[:, 3:1],
    "slice_step": lambda x: x[:, ::3],
    "flip": lambda x: x.flip(1),
    "flip2": lambda x: x.flip((0, 1)),
    "div_trunc": lambda x: torch.div(x, 2, rounding_mode="trunc"),
    "div_floor": lambda x: torch.div(x, -2, rounding_mode="floor"),
    "floordiv": lambda x: x // 1.5,
    "floordiv_frac": lambda x: x // 0.1,
    "floordiv_t": lambda x: torch.floor_divide(x, torch.full_like(x, -0.1)),
    "floordiv_zero": lambda x: (x.abs() + 1) // torch.zeros_like(x),
    "clamp_swapped": lambda x: x.clamp(1, -1),
    "clamp_t": lambda x: x.clamp(torch.full_like(x, 1), torch.full_like(x, -1)),
    "clamp_min": lambda x: x.clamp(min=0.25),
    "clamp_max": lambda x: x.clamp(max=-1),
    "hardtanh": lambda x: F.hardtanh(x, -1, 1),
    "clip_int": lambda x: x.clamp(-1, 2),
    "pow2": lambda x: x**2,
    "pow3": lambda x: x**3,
    "pow_1": lambda x: x.abs() ** (-1.5),
    "powbase": lambda x: 2**x,
    "pow0": lambda x: x**0,
    "pow_half": lambda x: x.abs() ** 0.5,
    "powt": lambda x: torch.pow(x, torch.full_like(x, 3.0)),
    "rem": lambda x: torch.remainder(x, 2),
    "rem_neg": lambda x: torch.remainder(x, -2),
    "rem_frac": lambda x: x % 0.7,
    "rem_far": lambda x: (x * 1e6) % math.tau,
    "fmod": lambda x: torch.fmod(x, 2),
    "fmod_neg": lambda x: torch.fmod(x, -1.5),
    "rem_t": lambda x: torch.remainder(x, torch.full_like(x, -1.5)),
    "rem_ts": lambda x: torch.remainder(5, x.abs() + 1),
    "toint": lambda x: x.int(),
    "tolong": lambda x: (x * 1000.0).long(),
    "touint": lambda x: x.abs().to(torch.uint8),
    "tobool": lambda x: x.bool(),
    "toint8": lambda x: x.to(torch.int8),
    "round": lambda x: x.round(),
    "round1": lambda x: x.round(decimals=1),
    "roundm1": lambda x: (x * 10).round(decimals=-1),
    "trunc": lambda x: x.trunc(),
    "ceil": lambda x: x.ceil(),
    "floor": lambda x: x.floor(),
    "frac": lambda x: x.frac(),
    "fix": lambda x: x.fix(),
    "sign": lambda x: x.sign(),
    "sgn": lambda x: x.sgn(),
    "signbit": lambda x: x.signbit(),
    "recip": lambda x: 1 / (x * 2),
    "heaviside": lambda x: torch.heaviside(x, torch.full_like(x, 0.5)),
    "argmax": lambda x: x.argmax(1),
    "argmax_all": lambda x: x.argmax(),
    "argmax_tie": lambda x: x.sign().argmax(1),
    "argmin_tie": lambda x: x.sign().argmin(1),
    "argmax_keep": lambda x: x.argmax(1, keepdim=True),
    "maxdim": lambda x: x.max(1)[0],
    "maxdim_i": lambda x: x.max(1)[1],
    "mindim_i": lambda x: x.sign().min(1)[1],
    "topk": lambda x: x.topk(2, 1)[0],
    "topk_i": lambda x: x.topk(2, 1)[1],
    "topk_small": lambda x: x.topk(2, 1, largest=False)[0],
    "sort": lambda x: x.sort(1)[0],
    "sort_d": lambda x: x.sort(1, descending=True)[0],
    "argsort_st": lambda x: torch.sort(x.sign(), dim=1, stable=True)[1],
    "argsort_d_st": lambda x: torch.sort(x.sign(), dim=1, descending=True, stable=True)[1],
    "gather_": lambda x: x.gather(1, torch.zeros(3, 2, dtype=torch.long)),
    "index_neg": lambda x: x[:, -1],
    "index_list": lambda x: x[:, [0, -1, 2]],
    "index_t": lambda x: x[:, torch.tensor([-1, -2])],
    "index2": lambda x: x[torch.tensor([0, -1]), torch.tensor([-2, 1])],
    "index_sel": lambda x: x.index_select(1, torch.tensor([3, 0])),
    "take": lambda x: x.take(torch.tensor([0, 5, -1])),
    "take_along": lambda x: torch.take_along_dim(x, x.argsort(1), 1),
    "mfill": lambda x: x.masked_fill(x > 1, -math.inf),
    "mfill_nan": lambda x: x.masked_fill(x > 1, 0.0),
    "iput": lambda x: torch.index_put(
        x, (torch.tensor([0, 0, 2]), torch.tensor([1, 1, -1])), torch.tensor([1.0, 2.0, 3.0]), accumulate=True
    ),
    "iput_set": lambda x: torch.index_put(x, (torch.tensor([0, -1]),), torch.ones(4)),
    "index_add": lambda x: x.index_add(0, torch.tensor([0, 0, 1]), x * 2),
    "index_copy": lambda x: x.index_copy(1, torch.tensor([0, 2]), torch.ones(3, 2)),
    "index_fill": lambda x: x.index_fill(1, torch.tensor([0, -1]), 5.0),
    "scat": lambda x: torch.zeros_like(x).scatter(1, x.argsort(1), x),
    "scat_add": lambda x: torch.zeros(3, 4).scatter_add(1, torch.zeros(3, 4, dtype=torch.long), x),
    "scat_red": lambda x: torch.zeros(3, 4).scatter_reduce(1, torch.zeros(3, 4, dtype=torch.long), x, "amax"),
    "scat_mean": lambda x: torch.zeros(3, 4).scatter_reduce(
        1, torch.zeros(3, 4, dtype=torch.long), x, "mean", include_self=False
    ),
    "scat_prod": lambda x: torch.ones(3, 4).scatter_reduce(1, torch.ones(3, 4, dtype=torch.long), x, "prod"),
    "scat_amax_ns": lambda x: torch.full((3, 4), 99.0).scatter_reduce(
        1, torch.zeros(3, 4, dtype=torch.long), x, "amax", include_self=False
    ),
    "scat_amin_ns": lambda x: torch.zeros(3, 4).scatter_reduce(
        1, torch.ones(3, 4, dtype=torch.long), x, "amin", include_self=False
    ),
    "scat_val": lambda x: x.scatter(1, torch.zeros(3, 1, dtype=torch.long), 9.0),
    "select_scatter": lambda x: torch.select_scatter(x, torch.ones(3), 1, -1),
    "slice_scatter": lambda x: torch.slice_scatter(x, torch.ones(3, 2), 1, 1, 3),
    "diag_emb": lambda x: torch.diag_embed(x),
    "diagonal": lambda x: x.diagonal(1),
    "diagonal_neg": lambda x: x.diagonal(-1),
    "cumsum": lambda x: x.cumsum(1),
    "cumsum_b": lambda x: (x > 0).cumsum(1),
    "cumsum_dt": lambda x: (x > 0).cumsum(1, dtype=torch.float32),
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "where_mixed": lambda x: torch.where(x > 0, x, 1),
    "where_int": lambda x: torch.where(x > 0, 1, 0),
    "where_mix2": lambda x: torch.where(x > 0, x.long(), 0.5),
    "softmax": lambda x: x.softmax(-1),
    "softmax_dt": lambda x: x.softmax(0, dtype=torch.float64),
    "softmax0d": lambda x: x.sum().softmax(0),
    "logsoftmax": lambda x: x.log_softmax(1),
    "softmin": lambda x: F.softmin(x, 1),
    "onehot": lambda x: F.one_hot(x.argmax(1), 4),
    "rep_int": lambda x: x.repeat_interleave(2, 1),
    "rep_int_flat": lambda x: x.repeat_interleave(3),
    "roll": lambda x: x.roll(1, 1),
    "roll_flat": lambda x: x.roll(5),
    "roll_neg": lambda x: x.roll((-1, 2), (0, 1)),
    "repeat": lambda x: x.repeat(2, 1, 2),
    "tile": lambda x: x.tile(2),
    "tril": lambda x: x.tril(1),
    "triu": lambda x: x.triu(-1),
    "tril_big": lambda x: x.tril(-2),
    "rot90": lambda x: x.rot90(1, (0, 1)),
    "logaddexp": lambda x: torch.logaddexp(x * 100, x),
    "logaddexp2": lambda x: torch.logaddexp2(x, x * 2),
    "softplus": lambda x: F.softplus(x * 10, 2, 5),
    "softplus_d": lambda x: F.softplus(x * 20),
    "gelu": lambda x: F.gelu(x),
    "gelu_t": lambda x: F.gelu(x, approximate="tanh"),
    "hswish": lambda x: F.hardswish(x),
    "hsig": lambda x: F.hardsigmoid(x),
    "relu6": lambda x: F.relu6(x * 3),
    "elu": lambda x: F.elu(x, 0.5),
    "celu": lambda x: F.celu(x, 0.7),
    "selu": F.selu,
    "mish": F.mish,
    "silu": F.silu,
    "logsig": lambda x: F.logsigmoid(x * 30),
    "tshrink": F.tanhshrink,
    "hshrink": lambda x: F.hardshrink(x, 1.5),
    "sshrink": lambda x: F.softshrink(x, 0.5),
    "thr": lambda x: F.threshold(x, 0.5, -3),
    "lrelu": lambda x: F.leaky_relu(x, -0.2),
    "glu": lambda x: F.glu(x, 1),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3, 0.4])),
    "softsign": F.softsign,
    "bucket": lambda x: torch.bucketize(x, torch.tensor([-1.5, 0.0, 1.5])),
    "bucket_r": lambda x: torch.bucketize(x, torch.tensor([-1.5, 0.0, 1.5]), right=True),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "einsum_d": lambda x: torch.einsum("ij->j", x),
    "ein_tr": lambda x: torch.einsum("ii->i", x[:, :3]),
    "var0": lambda x: x.var(1, correction=0),
    "var1": lambda x: x.var(1),
    "var2": lambda x: x.var(1, correction=2),
    "std_all": lambda x: x.std(),
    "var_mean": lambda x: torch.var_mean(x, 1)[1],
    "stdk": lambda x: x.std(1, keepdim=True),
    "norm0": lambda x: x.norm(0, 1),
    "norminf": lambda x: x.norm(math.inf, 1),
    "normninf": lambda x: x.norm(-math.inf, 1),
    "norm1": lambda x: x.norm(1, 1),
    "norm3": lambda x: x.norm(3, 1),
    "normfro": lambda x: x.norm(),
    "vnorm": lambda x: torch.linalg.vector_norm(x, 2.5, 1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "mnorm": lambda x: torch.linalg.matrix_norm(x),
    "cossim": lambda x: F.cosine_similarity(x, x + 1),
    "pdist": lambda x: F.pairwise_distance(x, x * 2),
    "prodb": lambda x: (x > -9).prod(1),
    "prod": lambda x: x.prod(1),
    "prod_all": lambda x: x.prod(),
    "any_": lambda x: (x > 1).any(1),
    "all_": lambda x: (x > -9).all(),
    "any_f": lambda x: x.any(1),
    "all_f": lambda x: x.all(1),
    "sum_b": lambda x: (x > 0).sum(1),
    "sum_dt": lambda x: x.sum(1, dtype=torch.float64),
    "amax": lambda x: x.amax((0, 1)),
    "amin": lambda x: x.amin(1, keepdim=True),
    "aminmax": lambda x: torch.aminmax(x, dim=1)[0],
    "meannone": lambda x: x.mean(),
    "mean_kd": lambda x: x.mean((0, 1), keepdim=True),
    "lse": lambda x: x.logsumexp(1),
    "lse_all": lambda x: x.logsumexp((0, 1)),
    "count_nz": lambda x: x.count_nonzero(1),
    "nansum": lambda x: x.nansum(1),
    "atan2": lambda x: torch.atan2(x, x.flip(1)),
    "erf": torch.erf,
    "erfc": torch.erfc,
    "expm1": lambda x: torch.expm1(x),
    "log1p": lambda x: torch.log1p(x.abs()),
    "log2": lambda x: (x.abs() + 1).log2(),
    "log10": lambda x: (x.abs() + 1).log10(),
    "exp2": torch.exp2,
    "rsqrt": lambda x: (x.abs() + 1).rsqrt(),
    "asinh": torch.asinh,
    "acosh": lambda x: torch.acosh(x.abs() + 1),
    "atanh": lambda x: torch.atanh(x / 10),
    "sinc": lambda x: torch.sinc(x),
    "xlogy": lambda x: torch.xlogy(x.abs(), x.abs()),
    "logit": lambda x: torch.logit(x.sigmoid(), eps=0.3),
    "lerp": lambda x: torch.lerp(x, x + 1, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=2),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.5),
    "deg": torch.deg2rad,
    "square": torch.square,
    "neg": torch.neg,
    "sub_alpha": lambda x: torch.sub(x, x * 2, alpha=3),
    "add_alpha": lambda x: torch.add(x, 2, alpha=0.5),
    "rsub": lambda x: torch.rsub(x, 1, alpha=2),
    "addmm": lambda x: torch.addmm(x[:, :3], x, x.T, beta=0.5, alpha=2),
    "baddbmm": lambda x: torch.baddbmm(x[None, :, :3], x[None], x.T[None], beta=0, alpha=2),
    "outer": lambda x: torch.outer(x[0], x[1]),
    "dotv": lambda x: torch.dot(x[0], x[1]),
    "mv": lambda x: torch.mv(x, x[0]),
    "kron": lambda x: torch.kron(x, x[:1, :2]),
    "cross": lambda x: torch.linalg.cross(x[:, :3], x[:, 1:]),
    "maxt": lambda x: torch.maximum(x, x.flip(1)),
    "minimum": lambda x: torch.minimum(x, x.flip(0)),
    "eq": lambda x: x == 0,
    "ne": lambda x: x != 0,
    "isclose": lambda x: torch.isclose(x, x + 1e-09),
    "logical": lambda x: torch.logical_xor(x > 0, x > 1),
    "lnot": lambda x: torch.logical_not(x),
    "land": lambda x: torch.logical_and(x, x > 1),
    "pad_neg": lambda x: F.pad(x, (-1, 2)),
    "pad_ref": lambda x: F.pad(x[None], (1, 2), mode="reflect"),
    "pad_rep": lambda x: F.pad(x[None], (1, 2), mode="replicate"),
    "pad_circ": lambda x: F.pad(x[None], (1, 2), mode="circular"),
    "pad_val": lambda x: F.pad(x, (1, 0, 0, 2), value=-1.5),
    "constpad": lambda x: F.pad(x > 0, (1, 1), value=True),
    "chunk": lambda x: x.chunk(3, 1)[1],
    "split": lambda x: x.split(3, 1)[1],  # type: ignore[no-untyped-call]
    "split_l": lambda x: x.split([1, 3], 1)[1],  # type: ignore[no-untyped-call]
    "tsplit": lambda x: x.tensor_split(3, 1)[0],
    "unbind": lambda x: x.unbind(1)[3],
    "stack": lambda x: torch.stack([x, x + 1], -1),
    "cat_mixed": lambda x: torch.cat([x, x.long()], 1),
    "cat_empty": lambda x: torch.cat([x, torch.zeros(0)], 0),
    "unfold": lambda x: x.unfold(1, 2, 1),
    "hstack": lambda x: torch.hstack([x, x]),
    "movedim": lambda x: x.movedim(0, 1),
    "swapax": lambda x: x.unsqueeze(0).swapaxes(0, 2),
    "reshape_m1": lambda x: x.reshape(-1),
    "view0": lambda x: x.reshape(3, 2, -1),
    "unflatten": lambda x: x.unflatten(1, (2, -1)),  # type: ignore[no-untyped-call]
    "meshgrid": lambda x: torch.meshgrid(x[0], x[1], indexing="xy")[0],
    "trace": lambda x: x[:, :3].trace(),
    "full_like": lambda x: torch.full_like(x, 2, dtype=torch.long) + x.long(),
    "arange": lambda x: torch.arange(5, 0, -2) + x.long()[:, :1],
    "linspace": lambda x: torch.linspace(0, 1, 4) + x,
    "nan2num": lambda x: torch.nan_to_num(x / 0.0),
    "nan2num2": lambda x: torch.nan_to_num(x / 0.0, nan=1, posinf=2, neginf=-2),
    "cplx": lambda x: torch.view_as_real(
        torch.view_as_complex(x.reshape(3, 2, 2)) * torch.view_as_complex(x.reshape(3, 2, 2))
    ),
    "cabs": lambda x: torch.complex(x, x).abs(),
    "cparts": lambda x: _spectrum(x, lambda z: z.to(z.device)[:, None].expand(-1, 2, -1).repeat(2, 1, 1)[:, 1] * 2 + 1),
    "crows": lambda x: _spectrum(
        x, lambda z: torch.split(z[torch.tensor([2, 0])], 2, -1)[1].index_select(0, x[:2, 0].long() * 0)
    ),
    "cdiv": lambda x: _spectrum(x, lambda z: (z - 2) / (z.chunk(2, -1)[0].repeat_interleave(2, 1) + 7)),
    "polar": lambda x: torch.view_as_real(torch.polar(x.abs(), x)),
    "fft": lambda x: torch.view_as_real(torch.fft.fft(x)),
    "rfft": lambda x: torch.fft.rfft(x).abs(),
    "irfft": lambda x: torch.fft.irfft(torch.fft.rfft(x)),
    "diff": lambda x: x.diff(dim=1),
    "tri_idx": lambda x: torch.tril_indices(3, 3) + x.sum().long(),
    "entr": lambda x: torch.special.entr(x.abs()),
    "signb0": lambda x: (x * 0).signbit(),
    "atan_ends": lambda x: torch.stack([torch.atan2((x + 0.3) * math.inf, (s - x) * math.inf) for s in (1.0, -1.0)]),
    "atan0": lambda x: torch.atan2(x * 0, x.flip(1) * 0 - 1),
    "scmean_in": lambda x: torch.ones(3, 4).scatter_reduce(1, torch.zeros(3, 4, dtype=torch.long), x, "mean"),
}


def _spectrum(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """What a function makes of complex numbers, in real ones."""
    return torch.view_as_real(function(torch.complex(x, x + 1)))


INTEGERS: Cases = {
    "div": lambda n: n / 2,
    "floordiv": lambda n: n // 2,
    "floordivn": lambda n: n // -2,
    "floordivf": lambda n: n // 2.5,
    "floordivr": lambda n: 7 // (n.abs() + 1),
    "remr": lambda n: 7 % (n.abs() + 1),
    "rem_size": lambda n: n % n.shape[0],
    "divt": lambda n: torch.div(n, 2, rounding_mode="trunc"),
    "divtn": lambda n: torch.div(n, -4, rounding_mode="trunc"),
    "divf": lambda n: torch.div(n, -4, rounding_mode="floor"),
    "divtt": lambda n: torch.div(n, torch.full_like(n, -4), rounding_mode="floor"),
    "divtt2": lambda n: torch.div(n, torch.full_like(n, -4), rounding_mode="trunc"),
    "divff": lambda n: torch.div(n, 2.5, rounding_mode="floor"),
    "rem": lambda n: n % 3,
    "remn": lambda n: n % -3,
    "fmod": lambda n: torch.fmod(n, 3),
    "fmodn": lambda n: torch.fmod(n, -3),
    "remt": lambda n: torch.remainder(n, torch.full_like(n, -3)),
    "pow2": lambda n: n**2,
    "pow3": lambda n: n**3,
    "powf": lambda n: n.abs() ** 0.5,
    "powbase": lambda n: 2 ** n.abs(),
    "powfb": lambda n: 2.0**n,
    "powt": lambda n: torch.pow(n, n.abs() % 3),
    "pow0": lambda n: n**0,
    "pow_big": lambda n: n**20,
    "meani": lambda n: n.float().mean(1),
    "meandt": lambda n: n.mean(1, dtype=torch.float32),
    "sumi": lambda n: n.sum(1),
    "cumsum": lambda n: n.cumsum(1),
    "cumsum_i32": lambda n: n.int().cumsum(1),
    "cumsum_dt": lambda n: n.cumsum(1, dtype=torch.float32),
    "prod": lambda n: n.prod(1),
    "sum32": lambda n: n.int().sum(1),
    "abs": lambda n: n.abs(),
    "sign": lambda n: n.sign(),
    "neg": lambda n: -n,
    "clamp": lambda n: n.clamp(-3, 3),
    "clampf": lambda n: n.clamp(-2.5, 2.5),
    "clamps": lambda n: n.clamp(3, -3),
    "max": lambda n: n.max(),
    "amax": lambda n: n.amax(1),
    "argmax": lambda n: n.argmax(1),
    "relu": lambda n: F.relu(n),
    "shl": lambda n: n << 2,
    "shr": lambda n: n >> 1,
    "band": lambda n: n & 6,
    "bor": lambda n: n | 6,
    "bxor": lambda n: n ^ 6,
    "bnot": lambda n: ~n,
    "rsh32": lambda n: n.int() >> 1,
    "bits": lambda n: (n.abs().to(torch.uint8)[..., None] >> torch.arange(8)) & 1,
    "pack": lambda n: ((n > 0).int() << torch.arange(4)).sum(1),
    "add_b": lambda n: (n > 0) + (n < -5),
    "band_b": lambda n: (n > 0) & (n < 5),
    "bnot_b": lambda n: ~(n > 0),
    "bor_b": lambda n: (n > 0) | (n < -5),
    "addf": lambda n: n + 0.5,
    "mulf": lambda n: n * 0.5,
    "addalpha": lambda n: torch.add(n, n, alpha=2),
    "sub": lambda n: n - n.int(),
    "mul8": lambda n: n.to(torch.int8) * n.to(torch.int8),
    "uint": lambda n: n.abs().to(torch.uint8) - 1,
    "cmp": lambda n: n > 0.5,
    "eqf": lambda n: n == 2.0,
    "wherem": lambda n: torch.where(n > 0, n, 0.5),
    "whereb": lambda n: torch.where(n > 0, n > 2, n < -4),
    "sort": lambda n: n.sort(1)[0],
    "topk": lambda n: n.topk(2, 1)[0],
    "sqrt": lambda n: n.abs().sqrt(),
    "exp": lambda n: torch.exp(n),
    "sin": lambda n: torch.sin(n),
    "sigmoid": lambda n: torch.sigmoid(n),
    "softmax": lambda n: n.softmax(1, dtype=torch.float32),
    "rounds": lambda n: n.round(),
    "floor": lambda n: n.floor(),
    "trunc": lambda n: n.trunc(),
    "matmul": lambda n: n @ n.T,
    "gather": lambda n: n.gather(1, n.abs() % 4),
    "emb": lambda n: F.embedding(n.abs() % 5, torch.arange(10.0).reshape(5, 2)),
    "onehot5": lambda n: F.one_hot(n.abs() % 5, 5),
    "iput": lambda n: torch.zeros(10).index_put((n.abs().flatten(),), torch.ones(()), accumulate=True),
    "anyi": lambda n: n.any(1),
    "alli": lambda n: n.all(1),
    "maxi": lambda n: torch.maximum(n, torch.tensor(2)),
    "tofloat": lambda n: n.half().float(),
    "var": lambda n: n.double().var(1),
    "lt": lambda n: torch.lt(n, n.flip(1)),
    "tril": lambda n: n.tril(),
    "trilb": lambda n: (n > 0).tril(),
    "triui": lambda n: n.triu(1),
    "flip": lambda n: n.flip(0),
    "rolli": lambda n: n.roll(2, 1),
    "cumb": lambda n: (n > 0).cumsum(0),
    "remi32": lambda n: n.int() % -3,
    "floordiv32": lambda n: n.int() // 2,
    "true_div32": lambda n: n.int() / 4,
    "powi32": lambda n: n.int() ** 2,
    "mean_b": lambda n: (n > 0).float().mean(),
    "masked": lambda n: n.masked_fill(n < 0, 0),
    "full": lambda n: torch.full((2,), 7) + n[0, :2],
    "scalar": lambda n: n[0, 0] + 1,
    "mulb": lambda n: (n > 0) * n,
    "subbf": lambda n: 1 - (n > 0).float(),
    "xorb": lambda n: (n > 0) ^ (n > 1),
    "absmin": lambda n: n.min(1)[0],
    "bmax": lambda n: (n > 0).max(),
    "bamax": lambda n: (n > 0).amax(1),
    "dotp": lambda n: torch.dot(n[0], n[1]),
    "ein": lambda n: torch.einsum("ij,kj->ik", n, n),
}

SPECIALS: Cases = {
    "isnan": lambda x: x.isnan(),
    "isinf": lambda x: x.isinf(),
    "isfin": lambda x: x.isfinite(),
    "isposinf": torch.isposinf,
    "isneginf": torch.isneginf,
    "nan2num": lambda x: x.nan_to_num(),
    "nan2num2": lambda x: x.nan_to_num(1, 2, 3),
    "sgn0": lambda x: x.nan_to_num().sign(),
    "whr": lambda x: torch.where(x.isnan(), 0.0, x),
    "relu": lambda x: torch.isnan(F.relu(x)),
    "clampn": lambda x: x.clamp(-1, 1).isnan(),
    "maxn": lambda x: torch.maximum(x, torch.zeros_like(x)).isnan(),
    "minn": lambda x: torch.minimum(x, torch.zeros_like(x)).isnan(),
    "relu6n": lambda x: F.relu6(x).isnan(),
    "toboo": lambda x: x.bool(),
    "eqn": lambda x: x == x,
    "ltn": lambda x: x < 0,
    "nanmean": lambda x: x.masked_fill(x.isinf(), 0).nanmean(1),
    "nansum": lambda x: x.masked_fill(x.isinf(), 0).nansum(1),
    "softmaxm": lambda x: x.masked_fill(x.isnan(), -math.inf).clamp(max=50).softmax(1),
    "hardt": lambda x: F.hardtanh(x).isnan(),
    "sigm": lambda x: x.nan_to_num().sigmoid(),
    "tanh": lambda x: x.nan_to_num().tanh(),
    "logz": lambda x: torch.log(x.nan_to_num().abs()),
    "argmaxn": lambda x: x.nan_to_num().argmax(1),
    "hardsw": lambda x: F.hardswish(x).isnan(),
    "softp": lambda x: F.softplus(x.nan_to_num()),
    "lae": lambda x: torch.logaddexp(x.masked_fill(x.isnan(), 0), x.masked_fill(x.isnan(), 0)),
    "lse": lambda x: x.masked_fill(x.isnan(), 0).logsumexp(1),
    "lsem": lambda x: torch.full_like(x, -math.inf).logsumexp(1),
    "toint": lambda x: x.nan_to_num().clamp(-1000000000.0, 1000000000.0).int(),
    "erf": lambda x: torch.erf(x.nan_to_num()),
    "roundl": lambda x: x.nan_to_num().clamp(-1000000000.0, 1000000000.0).round(),
    "celu": lambda x: F.elu(x.nan_to_num().clamp(-1000000000.0, 1000000000.0)),
    "silu": lambda x: F.silu(x.nan_to_num()),
    "mish": lambda x: F.mish(x.nan_to_num()),
    "logsig": lambda x: F.logsigmoid(x.nan_to_num()),
    "remn": lambda x: torch.remainder(x.nan_to_num().clamp(-9, 9), 2),
    "floordiv": lambda x: x.nan_to_num(0, math.inf, -math.inf).isinf() & (x // 2.5).isnan(),
    "norm": lambda x: F.normalize(x.nan_to_num(0, 1, -1), dim=1),
}

IMAGES: Cases = {
    "avg_unbatched": lambda x: F.avg_pool2d(x[0], 2),
    "mp_ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "mp_dil": lambda x: F.max_pool2d(x, 2, 1, 0, dilation=2),
    "mp_idx": lambda x: F.max_pool2d(x, 2, return_indices=True)[1],
    "mp_neg": lambda x: F.max_pool2d(-x.abs() - 5, 3, 2, 1),
    "ap_ceil": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "ap_ceil_p": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "ap_ceil_np": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "ap_nopad": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "ap_div": lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
    "ap_asym": lambda x: F.avg_pool2d(x, (2, 3), (1, 2), (1, 0)),
    "ap_c4": lambda x: F.avg_pool2d(x, (3, 2), (3, 4), (1, 1), ceil_mode=True, count_include_pad=True),
    "aap1": lambda x: F.adaptive_avg_pool2d(x, 1),
    "aap_n": lambda x: F.adaptive_avg_pool2d(x, (7, 4)),
    "aap_odd": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    "aap_none": lambda x: F.adaptive_avg_pool2d(x, (None, 4)),
    "amp1": lambda x: F.adaptive_max_pool2d(x, 1),
    "amp_odd": lambda x: F.adaptive_max_pool2d(x, (3, 5)),
    "lp": lambda x: F.lp_pool2d(x.abs(), 2, 2),
    "mp1": lambda x: F.max_pool1d(x[:, 0], 3, 2, ceil_mode=True),
    "ap1": lambda x: F.avg_pool1d(x[:, 0], 3, 2, 1, ceil_mode=True),
    "mp3": lambda x: F.max_pool3d(x[:, None], 2, ceil_mode=True),
    "ap3": lambda x: F.avg_pool3d(x[:, None], 2, ceil_mode=True),
    "near": lambda x: F.interpolate(x, scale_factor=2),
    "near_f": lambda x: F.interpolate(x, scale_factor=1.7),
    "near_fr": lambda x: F.interpolate(x, scale_factor=1.7, recompute_scale_factor=True),
    "near_size": lambda x: F.interpolate(x, size=(5, 11)),
    "near_ex": lambda x: F.interpolate(x, size=(5, 11), mode="nearest-exact"),
    "bil": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bil_ac": lambda x: F.interpolate(x, size=(13, 5), mode="bilinear", align_corners=True),
    "bil_f": lambda x: F.interpolate(x, scale_factor=(0.6, 1.3), mode="bilinear"),
    "bil_fr": lambda x: F.interpolate(x, scale_factor=0.6, mode="bilinear", recompute_scale_factor=True),
    "bil_aa": lambda x: F.interpolate(x, size=(4, 3), mode="bilinear", antialias=True),
    "bil_down": lambda x: F.interpolate(x, size=(3, 3), mode="bilinear"),
    "bic": lambda x: F.interpolate(x, size=(9, 5), mode="bicubic"),
    "bic_ac": lambda x: F.interpolate(x, size=(9, 5), mode="bicubic", align_corners=True),
    "bic_aa": lambda x: F.interpolate(x, size=(4, 5), mode="bicubic", antialias=True),
    "bil_ac1": lambda x: F.interpolate(x, size=(1, 1), mode="bilinear", align_corners=True),
    "area": lambda x: F.interpolate(x, size=(3, 4), mode="area"),
    "lin": lambda x: F.interpolate(x[:, 0], size=11, mode="linear"),
    "tri": lambda x: F.interpolate(x[:, None], size=(3, 5, 9), mode="trilinear"),
    "bic_f": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "gn1": lambda x: F.group_norm(x, 1),
    "gn4": lambda x: F.group_norm(x, 4),
    "gn2": lambda x: F.group_norm(x, 2, torch.arange(4.0), torch.ones(4), eps=0.01),
    "gn2d": lambda x: F.group_norm(x[:, :, 0, 0], 2),
    "gn3": lambda x: F.group_norm(x[:, :, 0], 2),
    "inorm": lambda x: F.instance_norm(x),
    "inorm3": lambda x: F.instance_norm(x[:, 0], eps=0.01),
    "inorm_w": lambda x: F.instance_norm(x, weight=torch.arange(4.0), bias=torch.ones(4)),
    "ln2": lambda x: F.layer_norm(x, (7, 8)),
    "ln3": lambda x: F.layer_norm(x, (4, 7, 8), torch.ones(4, 7, 8) * 2, torch.ones(4, 7, 8)),
    "ln1": lambda x: F.layer_norm(x, (8,), eps=0.1),
    "rms": lambda x: F.rms_norm(x, (7, 8)),
    "rms_eps": lambda x: F.rms_norm(x, (8,), torch.arange(8.0), eps=0.1),
    "lrn": lambda x: F.local_response_norm(x, 3, 0.1, 0.7, 2.0),
    "lrn_e": lambda x: F.local_response_norm(x, 2),
    "unf": lambda x: F.unfold(x, (2, 3), padding=1, stride=2),
    "unfd": lambda x: F.unfold(x, 2, dilation=2),
    "fold": lambda x: F.fold(F.unfold(x, 2, stride=1), (7, 8), 2),
    "fold_s": lambda x: F.fold(F.unfold(x[:, :, :6], (2, 2), stride=2, padding=0), (6, 8), 2, stride=2),
    "foldp": lambda x: F.fold(F.unfold(x, 3, padding=1, stride=2), (7, 8), 3, padding=1, stride=2),
    "cv_same": lambda x: F.conv2d(x, W, padding="same"),
    "cv_same3": lambda x: F.conv2d(x, W3, padding="same", dilation=2),
    "cv_valid": lambda x: F.conv2d(x, W3, padding="valid", stride=2),
    "cv_same1": lambda x: F.conv1d(x[:, :, 0], W[:, :, 0], padding="same"),
    "cv_dw": lambda x: F.conv2d(x, WD, groups=4, padding=(0, 2), stride=(2, 1)),
    "cv_nb": lambda x: F.conv2d(x[0], W3),
    "ct": lambda x: F.conv_transpose2d(x, WT, stride=2, padding=1, output_padding=1),
    "ct_asym": lambda x: F.conv_transpose2d(
        x, WT, stride=(2, 3), padding=(1, 0), output_padding=(0, 1), dilation=(1, 2)
    ),
    "ct_g": lambda x: F.conv_transpose2d(x, WT[:, :3], groups=2, stride=2),
    "ct1": lambda x: F.conv_transpose1d(x[:, :, 0], WT[:, :, 0], stride=2, output_padding=1),
    "ct_unb": lambda x: F.conv_transpose2d(x[0], WT),
    "psh": lambda x: F.pixel_shuffle(x, 2),
    "pun": lambda x: F.pixel_unshuffle(x[:, :, :6], 2),
    "chsh": lambda x: F.channel_shuffle(x, 2),
    "refl": lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"),
    "repl": lambda x: F.pad(x, (1, 2, 3, 0), mode="replicate"),
    "circ": lambda x: F.pad(x, (1, 2, 3, 0), mode="circular"),
    "negp": lambda x: F.pad(x, (-1, 2, 0, -1)),
    "gs": lambda x: F.grid_sample(x, torch.linspace(-1.2, 1.2, 2 * 5 * 6 * 2).reshape(2, 5, 6, 2), align_corners=False),
    "gs_ac": lambda x: F.grid_sample(
        x, torch.linspace(-1.2, 1.2, 2 * 5 * 6 * 2).reshape(2, 5, 6, 2), align_corners=True, padding_mode="border"
    ),
    "gs_n": lambda x: F.grid_sample(
        x, torch.linspace(-1.17, 1.13, 2 * 5 * 6 * 2).reshape(2, 5, 6, 2), mode="nearest", align_corners=False
    ),
    "gs_refl": lambda x: F.grid_sample(
        x, torch.linspace(-1.7, 1.73, 2 * 5 * 6 * 2).reshape(2, 5, 6, 2), padding_mode="reflection", align_corners=False
    ),
    "gs_bic": lambda x: F.grid_sample(
        x, torch.linspace(-1.2, 1.2, 2 * 5 * 6 * 2).reshape(2, 5, 6, 2), mode="bicubic", align_corners=False
    ),
    "ag": lambda x: F.affine_grid(x[:, 0, :2, :3], [2, 4, 5, 6], align_corners=False),
    "sq": lambda x: x.mean(1, keepdim=True).squeeze(1),
    "sqn": lambda x: x.squeeze(1),
    "flat": lambda x: x.flatten(1, -2),
    "flat_all": lambda x: x.flatten(),
    "permute_neg": lambda x: x.permute(0, -1, 1, -2),
    "normc": lambda x: x.norm(dim=(2, 3)),
    "varc": lambda x: x.var((0, 2, 3), correction=0),
    "sm2d": lambda x: F.softmax(x, 1),
    "gluc": lambda x: F.glu(x, 1),
    "sdpa": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "sdpa_s": lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.3),
    "sdpa_m": lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(7, 7, dtype=torch.bool).tril(1)),
    "sdpa_gqa": lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True),
    "sdpa_dead": lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(7, 7, dtype=torch.bool).tril(-1)),
    "sdpa_dead_f": lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(7, 7).tril(-1).log()),
    "sdpa_cross": lambda x: F.scaled_dot_product_attention(x[:, :, :3], x, x, is_causal=True),
    "bil_": lambda x: F.bilinear(x, x, torch.ones(3, 8, 8)),
    "std1": lambda x: x[:, :1].std(1, correction=0),
    "empty": lambda x: x[:, :0].softmax(-1),
    "emptysum": lambda x: x[:, :0].sum(1),
    "emptyprod": lambda x: x[:, :0].prod(1),
    "emptymean": lambda x: x[:, :0].sum(1) + 1,
    "expandas": lambda x: x[:, :1].expand_as(x),
    "bcast": lambda x: torch.broadcast_to(x[:, :1], (2, 3, 7, 8)),
    "cummul": lambda x: x.flip(-1).cumsum(-1).flip(-1),
}

# What has no translation, or none that the checker passes, never becomes a file.
REFUSED: Cases = {
    "avg_pool_ceil_divisor": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, divisor_override=5),
    "smoothed_loss": lambda x: F.cross_entropy(x, (x[:, 0] > 0).long(), label_smoothing=0.1),
    "smooth_resize_by_corners": lambda x: F.interpolate(
        x, size=(4, 5), mode="bilinear", antialias=True, align_corners=True
    ),
    "scatter_mean_of_integers": lambda x: (
        torch.zeros(2, 4).long().scatter_reduce(1, torch.zeros(2, 4).long(), x[:, :, 0, 0].long(), "mean")
    ),
}


WHERE = "torch.where of whole numbers and a scalar is refused"


class Table(nn.Module):
    """One output for each case."""

    def __init__(self, cases: Cases) -> None:
        super().__init__()
        self.cases = cases

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {name: case(x) for name, case in self.cases.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "x"),
    [
        pytest.param(FLOATS, X, id="floats", marks=fails_on_old_torch(WHERE)),
        pytest.param(INTEGERS, N, id="integers", marks=fails_on_old_torch(WHERE)),
        pytest.param(SPECIALS, S, id="specials"),
        pytest.param(IMAGES, I, id="images"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_operators_compute_the_same_at_their_edges(cases: Cases, x: Tensor, tmp_path: Path) -> None:
    module = Table(cases)
    exported = Exported(module, tmp_path / "table.onnx", (x,))
    for given in (x, x.flip(0), x.roll(1, -1)):
        check = exported.verify((given,), batches=[len(x)])
        assert check.failures == ()
        assert [str(row) for row in check.rows if not row.passed] == []
        assert {row.output for row in check.rows} == set(cases)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_translated_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export_onnx(Table({name: REFUSED[name]}), tmp_path / "m.onnx", (I,))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_graph_squeezes_and_takes_angles_as_its_model_does(tmp_path: Path) -> None:
    class Squeezes(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {
                "squeezed": x.squeeze(1).squeeze(-1) + x.unsqueeze(1).squeeze((1, 2)),
                "angle": torch.complex(x, x + 1).angle(),
            }

    gm = repl_fx.capture(Squeezes(), (X,))
    assert Exported(gm, tmp_path / "m.onnx", (X,)).verify()


# What the exporter itself translates into something else.
MENDED: Cases = {
    "ceiling": lambda x: x * -(-x.shape[2] // 2),
    "floor_of_negative": lambda x: x * ((3 - x.shape[2]) // 4 + x.shape[2] // -5),
    "floor_of_fraction": lambda x: x * ((x.shape[2] * 0.7) // 1),
    "pool_divisor": lambda x: F.avg_pool3d(x, 2, padding=1, divisor_override=3),
    "bilinear_factor": lambda x: F.interpolate(x, scale_factor=(0.5, 1.7), mode="bilinear", antialias=True),
    "bicubic_factor": lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True),
    "bicubic_size": lambda x: F.interpolate(x, size=(4, 5), mode="bicubic", antialias=True),
    "bernoulli": lambda x: torch.bernoulli((x > 0).float()),
    "least": lambda x: (x / (x < 1)).clamp(min=-0.5),
    "least_of_integers": lambda x: (x * 9).long().clamp(min=-3),
    "most": lambda x: (x / (x < 1)).neg().clamp_max(0.5),
    "loss": lambda x: F.cross_entropy(x, (x[:, 0] > 0).long(), torch.arange(4.0), reduction="none"),
}


@pytest.mark.slow
def test_what_the_exporter_translates_wrongly_is_as_pytorch_computes_it(tmp_path: Path) -> None:
    exported = Exported(Table(MENDED), tmp_path / "m.onnx", (I,))
    longer = torch.cat([I, I + 0.1, I], 2)[:, :, :10]
    for x in (I, longer):
        check = exported.verify((x,), batches=[2])
        assert [str(row) for row in check.rows if not row.passed] == []
        assert {row.output for row in check.rows} == set(MENDED) and not check.failures


POOLS: Cases = {
    "max_pool_ceil": lambda x: F.max_pool2d(x, 2, 3, 1, ceil_mode=True),
    "avg_pool_ceil": lambda x: F.avg_pool2d(x, 2, 3, 1, ceil_mode=True),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools_that_round_up_are_right_where_sizes_are_free(name: str, tmp_path: Path) -> None:
    module = Table({name: POOLS[name]})
    assert Exported(module, tmp_path / "m.onnx", (I,)).verify()
