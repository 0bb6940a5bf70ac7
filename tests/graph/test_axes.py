"""Names of the dimensions of inputs, and the sizes that a graph takes in words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from repl_fx.errors import BadInput
from repl_fx.graph.axes import InputSizes, captured_axes, dimensions_of, is_called, name_dims, size_checks
from repl_fx.tracing.capture import capture


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (InputSizes("ids", False, ("a", "b")), ("batch", "length")),
        (InputSizes("mask", False, ("a", 1, "b", "c")), ("batch", "heads", "length", "mask_length")),
        (InputSizes("flag", False, ()), ()),
        (InputSizes("x", True, ("a", 8)), ("batch", "features")),
        (InputSizes("x", True, ("a", "b")), ("batch", "length")),
        (InputSizes("x", True, ("a", "b", 8)), ("batch", "length", "features")),
        (InputSizes("x", True, ("a", 8, "b")), ("batch", "channels", "length")),
        (InputSizes("image", True, (3, "a", "b")), ("channels", "height", "width")),
        (InputSizes("x", True, ("a", 3, "b", "c")), ("batch", "channels", "height", "width")),
        (InputSizes("x", True, ("a", "b", "c", 3)), ("batch", "height", "width", "channels")),
        (InputSizes("x", True, ("a", 3, "b", "c", "d")), ("batch", "channels", "depth", "height", "width")),
        (InputSizes("x", True, ("a", "b", "c", "d", 3)), ("batch", "depth", "height", "width", "channels")),
        (InputSizes("x", True, ("a", "b", 3, "c", "d")), ("batch", "frames", "channels", "height", "width")),
        (InputSizes("past_0_key", True, ("a", 2, "b", 8)), ("batch", "heads", "past_length", "features")),
        (InputSizes("x", True, ("a", 1, 2, 3, 4, "b")), ("batch", "size_1", "size_2", "size_3", "size_4", "size_5")),
    ],
)
def test_dimensions_are_named_by_kind_and_rank(given: InputSizes, expected: tuple[str, ...]) -> None:
    assert name_dims([given]) == [expected]


def test_one_symbol_has_one_name_and_two_have_two() -> None:
    one, other = InputSizes("x", True, ("a", 3, "b", "b")), InputSizes("y", True, ("a", 3, "c", "d"))
    assert name_dims([one, other]) == [
        ("batch", "channels", "height", "height"),
        ("batch", "channels", "y_height", "width"),
    ]
    assert InputSizes.of("x", torch.uint8, [2, "s0"]).floating and not InputSizes.of("x", torch.bool, [2]).floating


class Joined(nn.Module):
    """Takes heights that are a multiple of two, and widths of six at most."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 2, stride=2), nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.shape[3] > 6:
            x = x * 2
        scale = sum(1 for _ in range(y.shape[1]))
        return torch.cat([self.up(self.down(x)), x]) + scale + y.sum()


def test_the_sizes_that_a_graph_takes_have_the_lines_that_need_them() -> None:
    gm = capture(Joined(), (torch.randn(2, 3, 8, 6), torch.randn(4, 5)))
    words = {one.name: one.takes for one in dimensions_of(gm)}
    first = Joined.forward.__code__.co_firstlineno
    assert words == {
        "batch": "any",
        "height": f"a multiple of 2 (test_axes.py, line {first + 4})",
        "width": f"a multiple of 2 (test_axes.py, line {first + 4}); at most 6 (test_axes.py, line {first + 1})",
        "y_batch": "any",
        "features": f"5 alone (test_axes.py, line {first + 3})",
    }
    assert [(axis.name, axis.size) for axis in captured_axes(gm) if axis.input == "y"] == [
        ("y_batch", 4),
        ("features", 5),
    ]
    height = next(axis for axis in captured_axes(gm) if axis.name == "height")
    assert all(is_called(height, [name]) for name in ("height", "x.height", "x.2"))
    assert not is_called(height, ["width", "y.height", "x.3", "y.2"])


class Folded(nn.Module):
    """Reads patches of two by two, and resizes what does not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=8, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.stem(x)
        height = math.ceil(y.shape[2] / 2) * 2
        if height != y.shape[2]:
            y = nn.functional.interpolate(y, (height, y.shape[3]))
        return y.reshape(y.shape[0], 4, height // 2, 2, -1).transpose(2, 3)


def test_several_conditions_on_a_size_are_put_in_the_words_of_one() -> None:
    gm = capture(Folded(), (torch.randn(2, 3, 64, 64),))
    line = Folded.forward.__code__.co_firstlineno + 3
    height = f"height a multiple of 16 or up to 7 less (test_axes.py, line {line})"
    assert list(map(str, dimensions_of(gm))) == ["batch any", height, "width any"]
    # Not that the model takes no others.
    assert not any(check.limit for _, check in size_checks(gm.graph))
    assert gm(torch.randn(1, 3, 41, 9)).shape == Folded()(torch.randn(1, 3, 41, 9)).shape
    with pytest.raises(BadInput, match="the model goes another way"):
        gm(torch.randn(2, 3, 72, 64))


def test_dimensions_that_weights_fix_are_left_out_unless_they_could_vary() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.positions = nn.Linear(4, 4), nn.Parameter(torch.zeros(1, 6, 4))

        def forward(self, x: Tensor) -> Tensor:
            mixed: Tensor = self.mix(x)
            return mixed + self.positions

    gm = capture(Positions(), (torch.randn(2, 6, 4),))
    line = Positions.forward.__code__.co_firstlineno + 2
    assert list(map(str, dimensions_of(gm))) == [
        "batch any",
        f"length 6 alone, by an operator (test_axes.py, line {line})",
    ]
    gm = capture(nn.Conv2d(3, 4, 3, padding=1), (torch.randn(2, 3, 1, 8),))
    assert [one.takes for one in dimensions_of(gm)] == ["any", "1 alone, as in the example inputs", "any"]


def test_a_fixed_size_beside_a_free_one_of_the_same_kind_is_of_its_input() -> None:
    class Messages(nn.Module):
        """Adds to each node of a graph what the nodes at the other ends of its edges have."""

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            source, target = edges
            return x.index_add(0, target, x[source])

    gm = capture(Messages(), (torch.randn(5, 4), torch.randint(0, 5, (2, 9))))
    line = Messages.forward.__code__.co_firstlineno + 1
    fixed = f"edges_batch 2 alone (test_axes.py, line {line})"
    assert list(map(str, dimensions_of(gm))) == ["batch any", "length any", fixed, "edges_length any"]
