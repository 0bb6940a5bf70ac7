"""The sizes that a graph is right for, by the questions that the trace of its model answered."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from repl_fx.errors import BadInput
from repl_fx.export.onnx_model import export_onnx
from repl_fx.export.session import OnnxSession
from repl_fx.export.tensors import flatten_inputs
from repl_fx.graph.axes import dimensions_of, size_checks
from repl_fx.pipeline import transform
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing import size_questions
from repl_fx.tracing.capture import capture
from repl_fx.tracing.size_questions import refused_sizes
from tests.exporting import Exported
from tests.tracing.nets import info_of


class Unet(nn.Module):
    """Two steps down and up again, with what was there before put beside: heights and widths by fours."""

    def __init__(self, *, transposed: bool = True) -> None:
        super().__init__()
        self.down, self.further = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.out = nn.ConvTranspose2d(8, 3, 2, 2)
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        a = self.down(x)
        b = self.further(a)
        if not self.transposed:
            return F.interpolate(torch.cat([a, F.interpolate(b, a.shape[-2:])], 1), x.shape[-2:], mode="bilinear")
        return x + self.out(torch.cat([a, self.up(b)], 1))  # type: ignore[no-any-return]


@settings(max_examples=25, deadline=None)
@given(sizes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)))
def test_pictures_of_any_size_that_the_model_takes_and_no_others(sizes: tuple[int, int, int]) -> None:
    model, gm = _captured()
    batch, height, width = sizes
    x = torch.randn(batch, 3, height, width)
    if height % 4 or width % 4:
        with pytest.raises(RuntimeError):
            model(x)
        with pytest.raises(BadInput, match=r"the model takes only x\.shape\[[23]\] % 4 == 0 \(at .*, line \d+\)"):
            gm(x)
    else:
        assert torch.equal(gm(x), model(x))


_KEPT: list[tuple[nn.Module, Any]] = []


def _captured() -> tuple[nn.Module, Any]:
    if not _KEPT:
        model = Unet().eval()
        _KEPT.append((model, capture(model, (torch.randn(2, 3, 32, 48),))))
    return _KEPT[0]


def test_conditions_of_many_operators_are_one_rule_for_each_size() -> None:
    _, gm = _captured()
    assert info_of(gm).dynamic == {"x": (0, 2, 3)}
    assert sorted(refused_sizes(gm)) == ["x.shape[2] % 4 == 0", "x.shape[3] % 4 == 0"]
    assert all(check.limit for _, check in size_checks(gm.graph))


def test_a_model_without_limits_has_no_checks() -> None:
    model = Unet(transposed=False).eval()
    gm = capture(model, (torch.randn(2, 3, 32, 48),))
    for height, width in ((31, 17), (8, 64), (5, 5)):
        x = torch.randn(1, 3, height, width)
        assert torch.equal(gm(x), model(x))
    assert not refused_sizes(gm)


# By ways of Python in which no symbol can stand for a size, or another text than that of its number.
_FACTORS: dict[str, Callable[[Any], float]] = {
    "key": lambda length: {5: 2.0, 7: 3.0}.get(length, 1.0),
    "set": lambda length: 2.0 if (length, 4) in {(5, 4)} else 1.0,
    "text": lambda length: 2.0 if str(length) == "5" else 1.0,
    "format": lambda length: float(f"{length:02d}"),
    "numpy": lambda length: float(np.sqrt(length)),
    "divmod": lambda length: sum(divmod(length, 3)),
}


class Asks(nn.Module):
    """Goes another way by the length of what it is given."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        if self.kind == "over":
            return x + 2 * self.layer(x) if length > 6 else self.layer(x)  # type: ignore[no-any-return]
        if self.kind == "even":
            return self.layer(x) if length % 2 else x
        if self.kind == "range":
            for _ in range(length // 4):
                x = self.layer(x)
            return x
        if self.kind == "int":
            return x[:, : int(length / 2)] + self.layer(x)[:, : int(length / 2)]  # type: ignore[no-any-return]
        if self.kind == "sqrt":
            side = int(math.sqrt(length))
            return self.layer(x[:, : side * side].unflatten(1, (side, side)))  # type: ignore[no-any-return, no-untyped-call]
        if self.kind in _FACTORS:
            return self.layer(x) * _FACTORS[self.kind](length)  # type: ignore[no-any-return]
        return self.layer(x) * max(length, 6)  # type: ignore[no-any-return]


# The lengths, among 1 to 12, for which the way is that of length 5.
ALIKE = {
    "over": range(1, 7),
    "even": range(1, 13, 2),
    "range": range(4, 8),
    "int": range(4, 6),
    "sqrt": range(5, 6),
    "max": range(1, 7),
    **dict.fromkeys(_FACTORS, (5,)),
    "divmod": range(1, 13),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_a_graph_is_right_or_refuses_where_code_asks_for_a_size(kind: str) -> None:
    model = Asks(kind).eval()
    gm = capture(model, (torch.randn(2, 5, 4),))
    for length in range(1, 13):
        x = torch.randn(3, length, 4)
        if length in ALIKE[kind]:
            assert torch.equal(gm(x), model(x)), length
        else:
            try:
                found = gm(x)
            except BadInput as refused:
                # The root of a size is a number of Python's: one length is taken.
                assert (
                    kind == "sqrt"
                    or kind in _FACTORS
                    or re.search(r"x\.shape\[1\].*test_size_questions\.py, line \d", str(refused))
                )
            else:
                # A way of more generality than one number.
                assert torch.equal(found, model(x)), length


class Tells(nn.Module):
    """Makes text of its sizes."""

    def __init__(self, *, by_batch: bool) -> None:
        super().__init__()
        self.by_batch = by_batch
        self.layers = nn.ModuleDict({"2": nn.Linear(4, 4), "3": nn.Linear(4, 4)})

    def forward(self, x: Tensor) -> Tensor:
        message = f"{x.shape[0]} texts of {x.shape[1]} words"
        key = str(x.shape[0]) if self.by_batch else "2"
        assert message.split()[0].isdigit()
        return self.layers[key](x)  # type: ignore[no-any-return]


def test_a_message_with_sizes_leaves_them_free_and_a_name_made_of_them_does_not() -> None:
    x = torch.randn(2, 5, 4)
    model, other = Tells(by_batch=False).eval(), torch.randn(3, 7, 4)
    assert torch.equal(capture(model, (x,))(other), model(other))
    model = Tells(by_batch=True).eval()
    gm = capture(model, (x,))
    assert torch.equal(gm(x), model(x))
    assert all("test_size_questions.py, line" in info_of(gm).fixed[f"x.{dim}"] for dim in (0, 1))
    with pytest.raises(BadInput, match="captured as"):
        gm(other)


class Bounded(nn.Module):
    """Returns a number made of its length, and a tensor of that."""

    def __init__(self, number: Any) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        number = self.number(x.shape[1])
        return torch.tensor(number), number


@pytest.mark.parametrize(
    ("number", "free"),
    [
        (lambda n: max(3, n, 5), True),
        (lambda n: min(9, n // 2, 4, n), True),
        (lambda n: math.pow(n, 2), True),
        (lambda n: math.pow(2, 3), True),
        (lambda n: math.pow(n, -0.5), True),
        (lambda n: min(1.0, n / 6), False),
        (lambda n: max(0.1, 1 - n / 10), False),
        (lambda n: max(n / 3, 1), False),
        (lambda n: max(1.5, n / 2, 2.0), False),
        (lambda n: max([1.5, n / 2]), False),
        (lambda n: max(n, 4, key=lambda size: -size), False),
        (lambda n: min([n, 4], default=1), False),
    ],
)
def test_extremes_and_powers_of_sizes_are_right_or_refused(number: Any, free: bool) -> None:
    model = Bounded(number)
    gm = capture(model, (torch.randn(3, 7, 4),))
    taken = []
    for length in (1, 2, 3, 4, 5, 6, 7, 9, 12, 20):
        x = torch.randn(3, length, 4)
        with suppress(BadInput):
            (ours, found), (theirs, wanted) = gm(x), model(x)
            assert found == wanted and type(found) is type(wanted)
            assert torch.equal(ours, theirs) and ours.dtype is theirs.dtype
            taken.append(length)
    assert 7 in taken and (len(taken) == 10) is free


class Written(nn.Module):
    """Returns its sizes as a text, of what it has padded, or as a key."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Any:
        padded = nn.functional.pad(x, (0, 0, 0, x.shape[1] % 2))
        if self.way == "in training":
            return padded, str(x.shape[1]) if self.training else ""
        return {f"{x.shape[1]}": x} if self.way == "key" else (padded, f"{tuple(padded.shape)}")


@pytest.mark.parametrize("way", ["padded", "key", "in training"])
def test_text_of_sizes_that_is_returned_is_right_or_refused(way: str) -> None:
    model = Written(way)
    gm = capture(model, (torch.randn(3, 4, 4),))
    for length in (4, 3, 2, 9):
        x = torch.randn(3, length, 4)
        for training in (True, False):
            model.train(training), gm.train(training)
            with suppress(BadInput):
                assert str(gm(x)) == str(model(x))
    x = torch.randn(3, 4, 4)
    assert str(gm(x)) == str(model(x))


def test_a_name_made_of_a_size_fixes_it_where_the_model_has_no_other_name() -> None:
    model = Tells(by_batch=True).eval()
    del model.layers["3"]
    gm = capture(model, (torch.randn(2, 5, 4),))
    with pytest.raises(BadInput, match="captured as"):
        gm(torch.randn(3, 5, 4))


class Mixed(nn.Module):
    """Takes pairs of places apart; of one pair, the dimensions are as long as others by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(4, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        h = self.layer(x.mT).mT
        h = h.reshape(x.shape[0], -1, 2, 4).transpose(1, 2).flatten(1, 2)
        return h, h.shape[1]


@pytest.mark.parametrize("length", [3, 4, 8])
def test_dimensions_that_are_equal_by_chance_are_not_taken_for_each_other(length: int) -> None:
    model = Mixed()
    gm = capture(model, (torch.randn(3, length, 4),))
    for other in (3, 4, 8, 20):
        x = torch.randn(3, other, 4)
        (ours, size), theirs = gm(x), model(x)
        assert torch.equal(ours, theirs[0]) and size == theirs[1]


class Halves(nn.Module):
    """Writes into the second half of its patches, of which the example has one."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(4, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.patch(x).clone()
        h[:, :, h.shape[2] // 2 :] += h.mean()
        return h


@pytest.mark.parametrize("height", [2, 3, 8])
def test_the_order_of_strides_is_no_knowledge_of_sizes(height: int) -> None:
    model = Halves()
    gm = capture(model, (torch.randn(2, 4, height, 3),))
    for other in (2, 3, 4, 5, 8):
        x = torch.randn(2, 4, other, 3)
        assert torch.equal(gm(x), model(x))


class Sized(Tells):
    """Asserts its length, with a message that is made whether it fails or not."""

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[1] == 5, f"{x.shape[1]} words are not 5")
        return self.layers["2"](x)  # type: ignore[no-any-return]


def test_a_message_about_a_size_that_is_fixed_costs_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repl_fx.tracing.capture.computes_alike", lambda *given: pytest.fail("compared"))
    gm = capture(Sized(by_batch=False), (torch.randn(2, 5, 4),))
    assert gm(torch.randn(3, 5, 4)).shape == (3, 5, 4)


class Lengths(nn.Module):
    """Asks for its sizes in the ways of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.randn(1, 1, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, length = int(x.shape[0]), int(x.size(1))
        assert isinstance(batch, int) and int("3") == 3 and issubclass(bool, int) and {int: 1}[int] == 1
        x = self.layer(torch.cat([self.token.expand(len(x), -1, -1), x], 1)) / len(x[0])
        return x.view(batch * (length + 1), 4)


def test_len_and_int_are_sizes_of_the_call() -> None:
    model = Lengths().eval()
    gm = capture(model, (torch.randn(2, 5, 4),))
    for batch, length in ((1, 5), (3, 2), (4, 9)):
        x = torch.randn(batch, length, 4)
        assert torch.equal(gm(x), model(x))
    # Nothing of the trace stays.
    assert len([1, 2]) == 2 and len(torch.zeros(3, 2)) == 3 and int is int and "int" not in globals()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.outer(torch.relu(self.inner(self.norm(x))))
        return x + (2 * h if x.shape[1] > 6 else h)  # type: ignore[no-any-return]


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(11, 8), nn.ModuleList(Block() for _ in range(4))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        # The model's own code asks this one again in place.
        return x * 2 if ids.shape[1] > 9 else x  # type: ignore[no-any-return]


@pytest.mark.parametrize("surrogate", ["identity", "bottleneck", "blend"])
def test_a_surrogate_in_place_takes_lengths_for_which_its_block_goes_another_way(surrogate: str) -> None:
    torch.manual_seed(0)
    result = transform(Blocks().eval(), (torch.randint(0, 11, (2, 5)),), surrogate=surrogate)
    model, gm = result.model.eval(), result.graph_module.eval()
    for length in (2, 6):
        ids = torch.randint(0, 11, (3, length))
        assert torch.equal(model(ids), gm(ids))
    ids = torch.randint(0, 11, (3, 7))
    with pytest.raises(BadInput, match=r"ids\.shape\[1\] <= 6 \(at .*test_size_questions\.py, line \d+\)"):
        gm(ids)
    # The block's own code runs, on other weights; or else what is made of a stream alone has no other way.
    assert model(ids).shape == (3, 7, 8)
    if surrogate == "identity":
        pruned: Any = copy.deepcopy(result.captured_parts.source)
        gone = {replacement.block for replacement in result.plan.replacements}
        pruned.blocks = nn.ModuleList(b for n, b in enumerate(pruned.blocks) if f"blocks.{n}" not in gone)
        assert torch.equal(model(ids), pruned(ids))


class Windows(nn.Module):
    """Windows of pictures that are padded to multiples of 7: the arithmetic of Swin."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            _, height, width, channels = x.shape
            x = F.pad(x, (0, 0, 0, (7 - width % 7) % 7, 0, -height % 7))
            batch, tall, wide, _ = x.shape
            y = x.view(batch, tall // 7, 7, wide // 7, 7, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 49, channels)
            y = y.softmax(1).view(batch, tall // 7, wide // 7, 7, 7, channels)
            x = y.permute(0, 1, 3, 2, 4, 5).reshape(batch, tall, wide, channels)[:, :height, :width]
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))[:, ::2, 1::2]
        return x


class Pools(nn.Module):
    """Pictures that are padded so that there is a mean for every second pixel: the arithmetic of TensorFlow."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            height, width = (max((math.ceil(size / 2) - 1) * 2 + self.length - size, 0) for size in x.shape[1:3])
            x = F.pad(x, (0, 0, 0, width, height // 2, height - height // 2)).movedim(-1, 1)
            x = F.avg_pool2d(x, self.length, 2).movedim(1, -1)
        return x


@pytest.mark.parametrize("model", [Windows(), Pools(3), Pools(1)], ids=["windows", "longer pools", "shorter pools"])
def test_sizes_that_are_padded_up_to_multiples_stay_free(model: nn.Module, tmp_path: Path) -> None:
    gm = capture(model, (torch.randn(2, 96, 88, 1),))
    assert info_of(gm).dynamic == {"x": (0, 1, 2)} and not refused_sizes(gm)
    path = export_onnx(gm, tmp_path / "padded.onnx", (torch.randn(2, 96, 88, 1),))
    # The export writes them as multiples, too: else they grow from one padding to the next, and it takes minutes.
    dims = [dim for value in onnx.load(path).graph.value_info for dim in value.type.tensor_type.shape.dim]
    assert not any("CeilToInt" in dim.dim_param for dim in dims)
    for height, width in ((96, 88), (97, 130), (60, 200)):
        x = torch.randn(3, height, width, 1)
        assert torch.equal(gm(x), model(x))
        (found,) = OnnxSession(path).run(flatten_inputs(gm, ExampleInputs((x,)))).values()
        np.testing.assert_allclose(found, model(x), atol=1e-5)


def test_numbers_that_sizes_lack_of_multiples_are_those_of_python() -> None:
    class Lacks(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            n = x.shape[0]
            ceil = math.ceil(n / 4)
            padded = [(8 - n % 8) % 8, -n % 8, (5 - n) % 8, n + n % 2, n % 2 + n, n + n % 3, (8 - n % 4) % 8, ceil]
            nested = [-ceil % 6 + ceil, math.ceil(ceil / 3), (n + n % 2) // 2 % 2 + (n + n % 2) // 2]
            bounded = [
                max(7 - n, 0),
                *(max(added + ceil * 4 - n, least) for added in (-5, -3, 0) for least in (-2, 0, 2)),
            ]
            return [x.new_zeros(()) + number for number in (*padded, *nested, *bounded)]

    gm = capture(Lacks(), (torch.randn(13),))
    for length in range(1, 30):
        x = torch.randn(length)
        assert gm(x) == Lacks()(x)


class Thirds(nn.Module):
    """Pictures without a part of their middle, again and again."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(6):
            _, _, height, width = x.shape
            x = torch.cat([x[:, :, : height // 3], x[:, :, height // 2 :]], 2)
            x = torch.cat([x[..., : width // 3], x[..., width // 2 :]], 3).softmax(-1)
        return x


def test_sizes_that_are_too_involved_to_follow_stay_fixed() -> None:
    x = torch.randn(2, 1, 640, 640)
    gm = capture(Thirds(), (x,))
    assert info_of(gm).dynamic == {"x": (0,)}
    assert torch.equal(gm(x), Thirds()(x))


class SwinBatch(nn.Module):
    """Reckons the batch from the windows, and divides by what height and width have of them: the first Swin."""

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        windows = x.view(batch, height // 4, 4, width // 4, 4, channels).transpose(2, 3).reshape(-1, 16, channels)
        windows = windows.softmax(1)
        count = int(windows.shape[0] / (height * width / 4 / 4))
        return windows.view(count, height // 4, width // 4, 4, 4, -1).transpose(2, 3).reshape(count, height, width, -1)


def test_a_batch_that_is_a_quotient_of_windows_leaves_all_sizes_free() -> None:
    gm = capture(SwinBatch(), (torch.randn(2, 24, 24, 3),))
    assert refused_sizes(gm) == ["x.shape[1] % 4 == 0", "x.shape[2] % 4 == 0"]
    x = torch.randn(3, 8, 20, 3)
    assert torch.equal(gm(x), SwinBatch()(x))
    with pytest.raises(BadInput, match=r"the model takes only x\.shape\[2\] % 4 == 0"):
        gm(x[:, :, 1:])


class Settings(nn.Module):
    """Functions of torch with settings that depend on a computed size, as transformers has them for attention."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.change = nn.Conv2d(2, 4, 4, stride=4), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.conv(x).flatten(2).mT[:, None])


_SETTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "attention": lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=q.shape[2] > 1),
    "sum": lambda q: q.sum(3, keepdim=q.shape[2] > 1).cos(),
    "interpolate": lambda q: F.interpolate(q, size=(3, 4), mode="bilinear", align_corners=q.shape[2] > 1),
}


@pytest.mark.parametrize("change", _SETTINGS.values(), ids=_SETTINGS)
def test_sizes_that_a_setting_of_torchs_depends_on_stay_free(change: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Settings(change), torch.randn(2, 2, 8, 8)
    gm = capture(model, (x,))
    assert info_of(gm).dynamic == {"x": (0, 2, 3)}
    for other in torch.randn(3, 2, 4, 8), torch.randn(2, 2, 13, 8):
        assert torch.equal(gm(other), model(other))
    with pytest.raises(BadInput, match="the model goes another way with them"):
        gm(torch.randn(2, 2, 4, 4))


def test_sizes_stay_fixed_where_a_library_of_torchs_hands_on_such_a_setting() -> None:
    torch.manual_seed(0)
    own = FunctionType(_SETTINGS["attention"].__code__, {**globals(), "__name__": "torch.own"})
    model, x = Settings(own), torch.randn(2, 2, 4, 4)
    gm = capture(model, (x,))
    assert info_of(gm).dynamic == {"x": (0,)}
    reason = ", as a function of torch takes no question about sizes (TypeError: "
    assert info_of(gm).fixed["x.2"].startswith(reason)
    assert torch.equal(gm(other := torch.randn(3, 2, 4, 4)), model(other))
    with pytest.raises(BadInput, match=r"shape \[2, 2, 12, 12\], but was captured as \[any, 2, 4, 4\]"):
        gm(torch.randn(2, 2, 12, 12))


class Chunks(nn.Module):
    """Goes through a text chunk by chunk, as linear attention does; an operator asks whether there is one alone."""

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        if length == 1:
            return x
        padding = (64 - length % 64) % 64
        padded = F.pad(x, (0, 0, 0, padding))
        chunks = padded.reshape(x.shape[0], -1, 64, x.shape[-1]).cumsum(2)
        made, carried = torch.zeros_like(chunks), torch.zeros_like(chunks[:, 0, 0])
        for chunk in range((length + padding) // 64):
            made[:, chunk] = chunks[:, chunk] + carried[:, None]
            carried = carried + chunks[:, chunk, -1]
        return made.reshape(x.shape[0], -1, x.shape[-1])[:, :length]


def test_a_number_of_chunks_that_an_operator_asks_for_first_decides_all_the_same() -> None:
    gm = capture(Chunks(), (torch.randn(2, 5, 4),))
    for length in (2, 64):
        x = torch.randn(2, length, 4)
        assert torch.equal(gm(x), Chunks()(x))
    for length in (65, 130):
        with pytest.raises(BadInput, match=r"the model goes another way with them than where .*x\.shape\[1\]"):
            gm(torch.randn(2, length, 4))


def test_one_long_expression_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size_questions, "_MOST_WRITTEN", 10**9)
    assert info_of(capture(Thirds(), (torch.randn(2, 1, 640, 640),))).dynamic == {"x": (0,)}


def test_a_long_sum_of_sizes_is_none_to_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    class Joins(nn.Module):
        def forward(self, parts: list[Tensor]) -> Tensor:
            whole = torch.cat(parts)
            return whole.relu() if whole.shape[0] > 3 else whole

    monkeypatch.setattr(size_questions, "_LONGEST", 20)
    gm = capture(Joins(), ([torch.randn(length, 2) for length in range(3, 9)],))
    other = [torch.randn(length, 2) for length in (5, 1, 2, 7, 4, 2)]
    assert torch.equal(gm(other), Joins()(other))


class Masked(nn.Module):
    """Values times a mask, which is padded to their length where it is shorter, or broadcast."""

    def __init__(self, *, padded: bool) -> None:
        super().__init__()
        self.fc, self.padded, self.cut = nn.Linear(4, 4), padded, False

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        missing = x.shape[1] - mask.shape[1]
        if self.padded and missing > 0:
            mask = F.pad(mask, (0, missing))
        if self.cut and mask.shape[1] > x.shape[1]:
            mask = mask[:, : x.shape[1]]
        y: Tensor = self.fc(x) * mask[..., None]
        return y


@pytest.mark.parametrize("padded", [True, False])
def test_a_size_that_an_operator_wants_equal_and_the_model_pads_is_refused_and_not_broadcast(padded: bool) -> None:
    model = Masked(padded=padded).eval()
    gm = capture(model, (torch.randn(2, 6, 4), torch.ones(2, 6)))
    for length, masked in ((9, 9), (6, 1)):
        x, mask = torch.randn(3, length, 4), torch.ones(3, masked)
        if padded and masked != length:
            with pytest.raises(BadInput, match=r"where x\.shape\[1\] == mask\.shape\[1\] \(at .*, line \d+\)"):
                gm(x, mask)
        else:
            assert torch.equal(gm(x, mask), model(x, mask))
    assert torch.equal(gm(x[:, :1], mask[:1]), model(x[:, :1], mask[:1]))


class SpaceToDepth(nn.Module):
    """Maps windows of height and width that divide both, as channels."""

    def __init__(self, *, unshuffled: bool) -> None:
        super().__init__()
        self.unshuffled = unshuffled
        self.map = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.unshuffled:
            return self.map(F.pixel_unshuffle(x, 2).permute(0, 2, 3, 1))  # type: ignore[no-any-return]
        batch, channels, height, width = x.shape
        windows = x.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        return self.map(windows.reshape(-1, 12)).view(batch, height // 2, width // 2, 5)  # type: ignore[no-any-return]


@pytest.mark.parametrize("unshuffled", [True, False])
def test_windows_that_divide_height_and_width_leave_both_free(unshuffled: bool, tmp_path: Path) -> None:
    model = SpaceToDepth(unshuffled=unshuffled)
    gm = capture(model, (torch.randn(2, 3, 16, 16),))
    x = torch.randn(3, 3, 10, 24)
    assert torch.equal(gm(x), model(x))
    with pytest.raises(RuntimeError):
        model(x[..., 1:])
    with pytest.raises(BadInput, match=r"the model takes only x\.shape\[3\] % 2 == 0"):
        gm(x[..., 1:])
    path = export_onnx(gm, tmp_path / "windows.onnx", (x,))
    (found,) = OnnxSession(path).run(flatten_inputs(gm, ExampleInputs((x[:, :, :4],)))).values()
    np.testing.assert_allclose(found, model(x[:, :, :4]).detach(), atol=1e-5)


class Quarter(nn.Module):
    """The first quarter of its values, of which there have to be a multiple of four."""

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[1] % 4 == 0, "a multiple of four")
        return x[:, : x.shape[1] // 4].relu()


def test_an_assertion_on_a_size_is_checked_in_a_file_as_well(tmp_path: Path) -> None:
    gm = capture(Quarter(), (torch.randn(2, 8),))
    x = torch.randn(3, 12)
    assert torch.equal(gm(x), Quarter()(x))
    with pytest.raises(BadInput, match=r"where \(x\.shape\[1\] % 4\) == 0 \(at .*, line \d+\)"):
        gm(x[:, :10])
    export_onnx(gm, tmp_path / "quarter.onnx", (x,))
    session = OnnxSession(tmp_path / "quarter.onnx")
    for length in (12, 10):
        (found,) = session.run(flatten_inputs(gm, ExampleInputs((x[:, :length],)))).values()
        assert np.isnan(found).all() == (length == 10)


def test_two_sizes_of_which_neither_is_larger_are_one(tmp_path: Path) -> None:
    model = Masked(padded=True)
    model.cut = True
    args = torch.randn(2, 6, 4), torch.ones(2, 6)
    gm = capture(model.eval(), args)
    assert list(map(str, dimensions_of(gm))) == ["batch any", "length any"]
    check = Exported(gm, tmp_path / "masked.onnx", args).verify()
    assert check, check.summary()
    assert "length 3" in check.summary()
    # Where the model pads, ONNX Runtime has no numbers; it may notice that two sizes of one name differ.
    given = flatten_inputs(gm, ExampleInputs((args[0], torch.ones(2, 1))))
    session = OnnxSession(tmp_path / "masked.onnx")
    session.check_inputs(given)
    found = np.array(np.nan)
    with suppress(Exception):
        found = session.run(given)["output"]
    assert np.isnan(found).all()


class _Windows(nn.Module):
    """Reckons the batch from the number of its windows, as the first Swin did."""

    def __init__(self, parts: float) -> None:
        super().__init__()
        self.parts, self.fc = parts, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        windows = self.fc(x.view(2 * x.shape[0], 4, 8, 4).relu())
        batch = int(windows.shape[0] / (8 * 8 / 4 / 8))
        return windows.view(batch, 8, 8, -1) * int(batch / self.parts)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_batch_that_is_a_quotient_of_sizes_is_free_and_one_with_a_rest_is_not() -> None:
    x, others = torch.randn(4, 8, 8, 4), torch.randn(7, 8, 8, 4)
    model = _Windows(1.0)
    gm = capture(model, (x,))
    for batch in (others, others[:1]):
        assert torch.equal(gm(batch), model(batch))
    halved = capture(_Windows(2.0), (x,))
    with pytest.raises(BadInput, match=r"inputs of shape \[7, 8, 8, 4\]: the model goes another way"):
        halved(others)


class _Cut(nn.Module):
    """Goes on by how long a slice is."""

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.way, self.fc = way, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.fc(x))


def _rest_or_all(x: Tensor) -> Tensor:
    return x.mean(1) if x[:, 4:].numel() == 0 else x[:, 4:].sum(1)


CUT: list[Callable[[Tensor], Tensor]] = [
    _rest_or_all,
    lambda x: x[:, :4].sum(1) / x[:, :4].shape[1],
    lambda x: x[:, -4:].sum(1) / x[:, -4:].shape[1],
    lambda x: x[:, 2:6].sum(1) + x[:, 2:6].shape[1],
    lambda x: x.sum(1) + x[:, :-4].size(1),
    lambda x: x.sum(1) + len(x[0, 3:]),
]


@pytest.mark.parametrize("way", CUT)
@pytest.mark.parametrize("length", [2, 5, 12])
def test_where_slices_have_other_lengths_a_graph_is_right_or_refuses(
    way: Callable[[Tensor], Tensor], length: int
) -> None:
    model = _Cut(way)
    gm = capture(model, (torch.randn(2, length, 4),))
    for other in (1, 2, 3, 4, 5, 6, 7, 9, 20):
        x = torch.randn(3, other, 4)
        with suppress(BadInput):
            assert torch.equal(gm(x).nan_to_num(), model(x).nan_to_num())
    assert torch.equal(gm(x := torch.randn(3, length, 4)), model(x))


@pytest.mark.parametrize("length", [3, 5, 9])
@pytest.mark.parametrize(
    "way",
    [
        lambda x: x[:, :4].sum(1),
        lambda x: x[:, -4:].relu(),
        lambda x: x[:, 1:4].amax(0),
        lambda x: torch.cat([x[:, 3:], x[:, :3]], 1),
    ],
)
def test_slices_whose_lengths_no_code_goes_on_by_take_all(way: Callable[[Tensor], Tensor], length: int) -> None:
    model = _Cut(way)
    gm = capture(model, (torch.randn(2, length, 4),))
    assert not list(size_checks(gm.graph))
    for other in (1, 2, 3, 4, 5, 9, 20):
        assert torch.equal(gm(x := torch.randn(3, other, 4)), model(x))


def test_slices_that_are_empty_for_the_example_fix_no_size() -> None:
    class Halves(_Cut):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(torch.cat([x[:, :5], x[:, 5:] * 2], 1))
            return y

    # What is left of it is asked for when its sizes are settled, behind the trace.
    net = Halves(torch.relu)
    gm = capture(net, (torch.randn(2, 5, 4),))
    assert gm.meta["capture"].dynamic == {"x": (0, 1)}
    for length in (1, 4, 5, 6, 9):
        assert torch.equal(gm(x := torch.randn(3, length, 4)), net(x))


def test_slices_of_one_mode_are_tried_in_both() -> None:
    class OfTraining(_Cut):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x)[:, : 6 if self.training else 4]
            return y.sum(1) / y.shape[1] if self.training else y.sum(1)

    model = OfTraining(torch.relu)
    gm = capture(model, (torch.randn(2, 9, 4),))
    assert "x.shape[1] >= 6" in [check.words for _, check in size_checks(gm.graph)]
    for form in (model, gm):
        form.train()
    assert torch.equal(gm(x := torch.randn(3, 6, 4)), model(x))


def test_slices_up_to_sizes_that_are_padded_limit_nothing() -> None:
    def padded(x: Tensor) -> Tensor:
        whole = F.pad(x, (0, 0, 0, -x.shape[1] % 4))
        return whole.view(x.shape[0], -1, 4, 4).softmax(2).flatten(1, 2)[:, : x.shape[1]]

    gm = capture(_Cut(padded), (torch.randn(2, 6, 4),))
    assert not list(size_checks(gm.graph))
