"""Dimensions of the inputs that stay dynamic, and those that a number made of them fixes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from repl_fx.errors import BadInput
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.capture import capture
from repl_fx.tracing.dynamic_shapes import auto_shapes, dynamic_dims
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
    # The second dimension of a floating matrix counts as features, which ties the sequence to it.
    assert info_of(gm).dynamic == {"ids": (0,), "mask": (0,)}
    gm = capture(model, (torch.randint(20, (2, 6)), torch.ones(2, 6, dtype=torch.long)))
    assert info_of(gm).dynamic == {"ids": (0, 1), "mask": (0, 1)}
    for batch, length in ((1, 6), (5, 3), (1, 1), (3, 11)):
        ids, mask = torch.randint(20, (batch, length)), torch.ones(batch, length, dtype=torch.long)
        mask[:, length // 2 + 1 :] = 0
        assert torch.equal(gm(ids, mask), model(ids, mask))


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
    if whole:
        with pytest.raises(BadInput, match=r"has shape \[2, 18, 4\], but was captured as \[any, 9, 4\]"):
            gm(longer)
    else:
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
    with pytest.raises(BadInput, match=r"has shape \[2, 10, 4\], but was captured as \[any, 9, 4\]"):
        gm(torch.randn(2, 10, 4))


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 4), max_size=4), dtype=st.sampled_from([torch.float32, torch.int64, torch.bool]))
def test_dynamic_dims(shape: list[int], dtype: torch.dtype) -> None:
    tensor = torch.zeros(shape, dtype=dtype)
    dims = dynamic_dims(tensor)
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
