"""Dimensions of the inputs that stay dynamic, and those that a number made of them fixes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from repl_fx.errors import BadInput
from repl_fx.graph.axes import ASKED
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.capture import capture
from repl_fx.tracing.dynamic_shapes import auto_shapes, names_in, outer_dims
from tests.tracing.nets import info_of


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Embedding(20, 8), nn.Linear(8, 24)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.attend(self.embed(ids)).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, :].bool())


def test_batch_and_sequence_stay_dynamic() -> None:
    model = Tokens()
    gm = capture(model, (torch.randint(20, (2, 6)), torch.ones(2, 6)))
    assert info_of(gm).dynamic == {"ids": (0, 1), "mask": (0, 1)}
    gm = capture(model, (torch.randint(20, (2, 6)), torch.ones(2, 6, dtype=torch.long)))
    assert info_of(gm).dynamic == {"ids": (0, 1), "mask": (0, 1)}
    for batch, length in ((1, 6), (5, 3), (1, 1), (3, 11)):
        ids, mask = torch.randint(20, (batch, length)), torch.ones(batch, length, dtype=torch.long)
        mask[:, length // 2 + 1 :] = 0
        assert torch.equal(gm(ids, mask), model(ids, mask))


def _gate(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


@pytest.mark.parametrize("runs", [0, 5])
def test_functions_of_torch_script_fix_no_sizes_and_keep_gradients(runs: int) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.gate = nn.Linear(4, 4), torch.jit.script(_gate)

        def forward(self, x: Tensor) -> Tensor:
            return self.gate(self.mix(self.gate(self.mix(x))))  # type: ignore[no-any-return]

    model = Gated()
    for _ in range(runs):
        model(torch.randn(2, 9, 4)).sum().backward()
    gm = capture(model, (torch.randn(2, 9, 4),))
    assert info_of(gm).dynamic == {"x": (0, 1)}
    other = torch.randn(3, 5, 4)
    ours, theirs = gm(other), model(other)
    assert torch.equal(ours, theirs)
    gradients = (torch.autograd.grad(made.sum(), tuple(model.mix.parameters())) for made in (ours, theirs))
    assert all(map(torch.allclose, *gradients))


@pytest.mark.parametrize("whole", [True, False])
def test_a_number_made_of_a_size_is_not_kept_for_other_sizes(whole: bool) -> None:
    class Quarter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            # A remainder says nothing about the rest; a quotient that is made a number does.
            assert x.shape[1] % 3 == 0
            quarter = int(x.shape[1] // 4) if whole else x.shape[1] // 4
            return self.mix(x)[:, :quarter]  # type: ignore[no-any-return]

    model, x, longer = Quarter(), torch.randn(2, 9, 4), torch.randn(2, 18, 4)
    gm = capture(model, (x,))
    assert torch.equal(gm(x), model(x))
    assert torch.equal(gm(longer), model(longer))


def test_a_quotient_that_other_sizes_have_not_is_kept_for_its_own() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            # Of twice the length a division by zero.
            return self.mix(x)[:, : int(36 // (x.shape[1] - 18))]  # type: ignore[no-any-return]

    model, x = Cut(), torch.randn(2, 9, 4)
    gm = capture(model, (x,))
    assert torch.equal(gm(x), model(x))
    other = torch.randn(2, 10, 4)
    assert torch.equal(gm(other), model(other))


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 4), max_size=4), dtype=st.sampled_from([torch.float32, torch.int64, torch.bool]))
def test_outer_dims(shape: list[int], dtype: torch.dtype) -> None:
    tensor = torch.zeros(shape, dtype=dtype)
    dims = outer_dims(tensor)
    assert (0 in dims) == bool(shape)
    if dtype != torch.float32:
        assert dims == tuple(range(len(shape)))
    else:
        assert dims == {0: (), 3: (0, 1)}.get(len(shape), (0,))


def test_auto_shapes_follow_the_tensors_through_nesting_and_keywords() -> None:
    class Nested(nn.Module):
        def forward(self, a: list[Tensor], *, b: Tensor, c: dict[str, Tensor]) -> Tensor:
            return a[0] + b + c["k"]

    args, kwargs = ([torch.randn(2, 3)],), {"c": {"k": torch.randn(2, 3)}, "b": torch.randn(2, 3)}
    shapes = auto_shapes(ExampleInputs(args, kwargs))
    program = torch.export.export(
        Nested(),
        args,
        kwargs,
        dynamic_shapes=shapes,
        strict=False,
    )
    sizes = [node.meta["val"].shape[0] for node in program.graph.nodes if node.op == "placeholder"]
    assert len(sizes) == 3
    assert all(isinstance(size, torch.SymInt) for size in sizes)
    assert auto_shapes(ExampleInputs((torch.tensor(1.0), None))) is None


def test_dimensions_of_a_name_stay_as_in_the_example() -> None:
    class Added(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y[:, :, : x.shape[2] // 2].repeat(1, 1, 2, 1)

    model, given = Added(), (torch.randn(2, 3, 4, 6), torch.randn(2, 3, 8, 6))
    assert info_of(capture(model, given)).dynamic == {"x": (0, 1, 2, 3), "y": (0, 1, 2, 3)}
    gm = capture(model, given, fixed=["x.height", "width"])
    # One size is the same in all inputs that have it.
    assert info_of(gm).dynamic == {"x": (0, 1), "y": (0, 1, 2)}
    assert {dim for dim, reason in info_of(gm).fixed.items() if reason == ASKED} == {"x.2", "x.3", "y.3"}
    assert not [node for node in gm.graph.nodes if isinstance(node.meta.get("val"), torch.SymInt)]
    assert torch.equal(gm(*given), model(*given))
    with pytest.raises(BadInput, match=r"'x' has shape \[2, 3, 6, 6\], but was captured as \[any, any, 4, 6\]"):
        gm(torch.randn(2, 3, 6, 6), given[1])
    assert info_of(capture(model, given, fixed=["y.2"])).dynamic["y"] == (0, 1, 3)


def test_names_that_no_input_has_are_refused() -> None:
    model, given = nn.Conv2d(3, 4, 3, padding=1), (torch.randn(2, 3, 8, 8),)
    with pytest.raises(BadInput, match=r"fixed has 'hight', which .*; free are batch, height, width$"):
        capture(model, given, fixed=["hight"])
    assert names_in("height, width") == ("height", "width") and names_in("") == ()
    for wrong in ([1], [""]):
        with pytest.raises(BadInput, match="give names of dimensions, such as height,width"):
            capture(model, given, fixed=wrong)  # type: ignore[arg-type]
