"""Slim blocks that write into the stream."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.passes.driver import run_passes
from repl_fx.passes.replace_blocks import replace_blocks
from repl_fx.surrogates.shared.channels import put_channels, take_channels
from tests.nets import ConvNet, as_after_training, images
from tests.surrogates.shared.copying import copying


class Stream(nn.Module):
    """Residual blocks of several kinds."""

    def __init__(self, *, relu: bool, in_place: bool, dropout: float = 0.0, tap: str = "") -> None:
        super().__init__()
        self.relu, self.in_place, self.tap = relu, in_place, tap
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(5))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Any:
        """The stream; with `tap`, the ends of the branches, the sums or what is behind the activation as well."""
        x = self.stem(x)
        seen = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = self.dropout(norm(conv(x)))
            if self.tap in ("branch", "view"):
                seen.append(y if self.tap == "branch" else y.flatten(1))
            if self.in_place:
                y += x
            else:
                y = x + y
            x = F.relu(y, inplace=self.in_place) if self.relu else y
            if self.tap in ("sum", "stream"):
                seen.append(y if self.tap == "sum" else x)
        return (x, *seen) if self.tap else x


def _transformed(model: nn.Module) -> fx.GraphModule:
    gm = repl_fx.transform(model, (images(),), surrogate="slim").graph_module
    as_after_training(gm)
    return gm


def _calls(gm: fx.GraphModule, target: Any) -> int:
    return sum(node.target is target for node in gm.graph.nodes)


def _results(gm: fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers, by name."""
    gm = copy.deepcopy(gm).train()
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    made = gm(x)
    made.square().sum().backward()
    gradients = {name: p.grad for name, p in gm.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"output": made, "x": x.grad, **gradients, **{f"buffer {n}": b for n, b in gm.named_buffers()}}


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_it_computes_what_copies_compute(relu: bool, in_place: bool) -> None:
    torch.manual_seed(0)
    gm = _transformed(Stream(relu=relu, in_place=in_place, dropout=0.3)).double()
    assert _calls(gm, put_channels) == _calls(gm, take_channels) == 2 and not _calls(gm, torch.ops.aten.cat.default)
    # The ReLU over all channels does for the slim block too.
    relus = [n for n in gm.graph.nodes if "relu" in str(n.target) and n.op == "call_function"]
    assert len(relus) == (1 if relu else 0)
    x = images().double()
    written = _results(gm, x)
    with copying():
        copied = _results(gm, x)
    assert written.keys() == copied.keys()
    for name, value in copied.items():
        torch.testing.assert_close(written[name], value, msg=name)
    with torch.no_grad():
        gm.eval()
        made = gm(x)
        with copying():
            torch.testing.assert_close(gm(x), made, rtol=0, atol=0)


def _kept(gm: nn.Module, x: Tensor) -> int:
    """Bytes that the backward pass keeps besides parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in (*gm.parameters(), *gm.buffers())}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gm(x)
    return sum(seen.values())


@pytest.mark.parametrize("relu", [True, False])
def test_no_value_of_full_width_is_kept(relu: bool) -> None:
    model, x = Stream(relu=relu, in_place=False), images(8)
    gm = _transformed(copy.deepcopy(model)).train()
    pruned = repl_fx.transform(copy.deepcopy(model), (x,), surrogate="identity").graph_module.train()
    captured = repl_fx.capture(model, (x,))
    repeats = repl_fx.find_repeats(captured)
    plan = repl_fx.make_plan(captured, repeats, surrogate="slim")
    copying = run_passes(captured, partial(replace_blocks, repeats=repeats, plan=plan)).graph_module
    full = x.shape[0] * 16 * 8 * 8 * x.element_size()
    more = _kept(gm, x) - _kept(pruned, x)
    # For each of two slim blocks of 4 of 16 channels: the channels, and what the convolution makes of them.
    assert 0 < more < 2 * 0.6 * full
    assert _kept(copying.train(), x) - _kept(pruned, x) > more + 2 * 0.7 * full


@pytest.mark.parametrize(("relu", "tap"), [(True, "sum"), (True, "stream"), (False, "stream")])
def test_a_stream_that_is_read_elsewhere_is_copied(relu: bool, tap: str) -> None:
    model = Stream(relu=relu, in_place=False, tap=tap)
    gm = _transformed(model).eval()
    assert _calls(gm, put_channels) == 0 and _calls(gm, torch.ops.aten.cat.default) == 2
    x = images()
    _, seen, *_ = gm(x)
    stem, conv, norm = (gm.get_submodule(name) for name in ("stem", "convs.0", "norms.0"))
    first = stem(x)
    total = first + norm(conv(first))
    torch.testing.assert_close(seen, total if tap == "sum" or not relu else F.relu(total))


def test_a_sum_that_is_read_under_the_name_of_its_branch_is_copied() -> None:
    gm = _transformed(Stream(relu=False, in_place=True, tap="branch")).eval()
    assert _calls(gm, put_channels) == 0 and _calls(gm, torch.ops.aten.cat.default) == 2


def test_a_sum_whose_memory_is_read_in_another_shape_is_copied() -> None:
    gm = _transformed(Stream(relu=False, in_place=True, tap="view")).eval()
    assert _calls(gm, put_channels) == 0 and _calls(gm, torch.ops.aten.cat.default) == 2
    x = images()
    _, seen, *_ = gm(x)
    stem, conv, norm = (gm.get_submodule(name) for name in ("stem", "convs.0", "norms.0"))
    first = stem(x)
    torch.testing.assert_close(seen, (norm(conv(first)) + first).flatten(1))


def test_a_hook_on_the_activation_is_still_called() -> None:
    model = ConvNet(depth=3, width=16)
    gm = _transformed(model)
    assert _calls(gm, put_channels) == 1

    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(*(Block() for _ in range(3)))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x)
            return out

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.relu(x + self.norm(self.conv(x)))
            return out

    hooked = Hooked()
    calls: list[int] = []
    for number in (0, 2):
        hooked.get_submodule(f"net.{number}.relu").register_forward_hook(lambda *_: calls.append(1))
    gm = _transformed(hooked)
    calls.clear()
    gm(images())
    assert len(calls) == 2 and _calls(gm, put_channels) == 0


def test_compiled_and_under_autocast_it_is_the_same() -> None:
    gm, x = _transformed(Stream(relu=True, in_place=False)).eval(), images()
    torch.testing.assert_close(torch.compile(gm, backend="aot_eager")(x), gm(x))
    gm.train()
    with torch.autocast("cpu", torch.bfloat16):
        made = gm(x)
    made.float().square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in gm.parameters())
