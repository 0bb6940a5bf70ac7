"""The maps of a rewritten model become those that are closest to the original network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from tests.captures import transformed
from tests.nets import Counts, MlpNet

X = torch.randn(8, 4, 16)


class _Affine(nn.Module):
    """A residual block that is a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.fc1(x))  # type: ignore[no-any-return]


class _WritesOver(_Affine):
    """The same, written over the value that the block before made."""

    def forward(self, x: Tensor) -> Tensor:
        x += self.fc2(self.fc1(x))
        return x


class _Shifts(nn.Module):
    """A residual block of pictures that maps the channels of each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("block", "shape"),
    [(_Affine, (16, 6)), (_Affine, (4, 5, 6)), (_Shifts, (4, 6, 4, 4)), (_WritesOver, (4, 5, 6))],
    ids=["2d", "3d", "4d", "in place"],
)
def test_stretches_that_are_linear_are_met_exactly(block: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(*(block() for _ in range(7))), torch.randn(shape)
    result = transformed(net, (x.clone(),), surrogate="linear", blocks=[2, 4, 5, 6])
    assert [one.surrogate for one in result.plan.replacements] == ["linear", "identity", "identity", "linear"]
    source = [parameter.clone() for parameter in net.parameters()]
    fitted = repl_fx.fit(result, [x, torch.randn(shape)])
    assert [one.block for one in fitted.maps] == ["1", "5"]
    assert all(one.before > 1e-2 and one.after < 1e-4 for one in fitted.maps)
    assert all(one.rows == 2 * x.numel() // 6 for one in fitted.maps)
    torch.testing.assert_close(result.model.eval()(x.clone()), net.eval()(x.clone()), rtol=1e-3, atol=1e-3)
    assert torch.equal(result.model(x.clone()), result.graph_module.eval()(x.clone()))
    assert all(torch.equal(before, now) for before, now in zip(source, net.parameters(), strict=True))


@pytest.mark.parametrize("settings", [{}, {"rank": 4}, {"form": "scale"}])
def test_a_map_follows_those_before_it_and_is_closer_than_none(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net: Any = MlpNet(depth=6)
    batches = [torch.randn(8, 4, 16) for _ in range(6)]
    result = transformed(net, (X,), surrogate="linear", settings=settings)
    fitted = repl_fx.fit(result, lambda: iter(batches))
    assert [one.block for one in fitted.maps] == ["blocks.1", "blocks.3"]
    assert all(one.after < one.before for one in fitted.maps)
    # The second once more, on the network with the first in it: nothing moves.
    state = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    again = repl_fx.fit(result, batches)
    assert again == fitted
    assert all(torch.equal(tensor, state[name]) for name, tensor in result.model.state_dict().items())
    # The figure is that of the rows themselves.
    x = torch.cat(batches)
    with torch.no_grad():
        given, wanted = net.embed(x), net.blocks[:2](net.embed(x))
        for block in net.blocks[:1]:
            given = block(given)
    spread = (wanted - wanted.mean((0, 1))).square().sum()
    assert fitted.maps[0].before == pytest.approx(float((given - wanted).square().sum() / spread), rel=1e-4)
    assert "of the variance was lost" in str(fitted)


def test_a_merged_map_brings_the_stream_as_close_as_its_part_of_it_can() -> None:
    torch.manual_seed(0)
    net: Any = MlpNet(depth=5)
    batches = [torch.randn(8, 4, 16) for _ in range(6)]
    result = transformed(net, (X,), surrogate="linear", blocks=[2, 3], settings={"merged": True})
    fitted = repl_fx.fit(result, batches)
    (one,) = fitted.maps
    assert one.block == "blocks.2" and one.after < one.before
    # By hand: least squares of what the stretch adds, from what the block before adds.
    net.eval()
    with torch.no_grad():
        given = net.embed(torch.cat(batches))
        stream = net.blocks[0](given)
        wanted = net.blocks[:3](given)
        rows = torch.cat([(stream - given).reshape(-1, 16), torch.ones(stream[..., 0].numel(), 1)], 1).double()
        added = (wanted - stream).reshape(-1, 16).double()
        left = torch.linalg.lstsq(rows, added).solution
        spread = (wanted - wanted.mean((0, 1))).square().sum()
        assert one.after == pytest.approx(float((rows @ left - added).square().sum() / spread), rel=1e-3)
    # Again, from the map that it has: the same.
    again = repl_fx.fit(result, batches).maps[0]
    assert again.after == pytest.approx(one.after, rel=1e-4) and again.before == pytest.approx(one.before, rel=1e-4)


def test_a_model_in_parts_is_fitted() -> None:
    torch.manual_seed(0)
    model = Counts(nn.Sequential(*(_Affine() for _ in range(4))))
    x = torch.randn(8, 5, 6)
    result = repl_fx.transform(model, (x,), surrogate="linear", blocks=[2])
    assert not result.captured_parts.whole
    (one,) = repl_fx.fit(result, [x]).maps
    assert one.after < 1e-4 < one.before
    torch.testing.assert_close(result.model.eval()(x), model.eval()(x), rtol=1e-3, atol=1e-3)


def test_inputs_by_name_are_taken() -> None:
    result = transformed(MlpNet(depth=3), (X,), surrogate="linear")
    one, other = (repl_fx.fit(result, [batch]) for batch in ({"x": X}, (X,)))
    assert one == other


def test_what_cannot_be_fitted_is_a_line() -> None:
    result = transformed(MlpNet(depth=3), (X,), surrogate="linear")
    with pytest.raises(repl_fx.BadInput, match="the data hold 0 samples, which are too few"):
        repl_fx.fit(result, [])
    with pytest.raises(repl_fx.BadInput, match="can be gone through once"):
        repl_fx.fit(result, iter([X]))
    with pytest.raises(repl_fx.BadInput, match=r"batch 1: argument 'x' has shape"):
        repl_fx.fit(result, [X, torch.randn(8, 4, 17)])
    with pytest.raises(repl_fx.BadInput, match=r"batch 0: tensor 0 of its inputs holds nan"):
        repl_fx.fit(result, [X * float("nan")])
    with pytest.raises(repl_fx.BadInput, match="has no linear map to fit"):
        repl_fx.fit(transformed(MlpNet(depth=3), (X,), surrogate="identity"), [X])
    before = [parameter.clone() for parameter in result.model.parameters()]
    with pytest.raises(repl_fx.BadInput, match=r"stream at blocks\.1 is NaN or infinite in batch 1"):
        repl_fx.fit(result, [X, X * float("inf")])
    assert all(torch.equal(a, b) for a, b in zip(before, result.model.parameters(), strict=True))
