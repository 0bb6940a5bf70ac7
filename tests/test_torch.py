"""The ways of repl_fx._torch to what torch keeps private."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from torch import Tensor, fx, nn

from repl_fx import _torch
from repl_fx._torch import (
    FakeTensorMode,
    OperatorsRun,
    ShapeEnv,
    any_names,
    has_example,
    may_not_raise,
    results_known,
    scripts_as_written,
    tidy_size,
    translations_kept,
)


def test_the_paths_of_the_calls_around_a_node() -> None:
    node = fx.Graph().placeholder("x")
    assert _torch.module_stack(node) == ()
    node.meta["nn_module_stack"] = {"0": ("", nn.Module), "1": ("L['self'].body", nn.Module), "2": "body.layer@1"}
    assert _torch.module_stack(node) == ("body", "body.layer")
    # A check of sizes that torch.export added is in no module.
    node.meta["nn_module_stack"] = {"hook": (_torch.NO_MODULE, _torch.NO_MODULE)}
    assert _torch.module_stack(node) == ()


def test_a_call_of_one_module_runs_another_function_for_a_while() -> None:
    module, other, x = nn.ReLU(), nn.ReLU(), torch.tensor([-1.0])
    with _torch.calls_replaced([module], lambda _, own: lambda x: own(x) + 5):
        assert module(x).item() == 5 and other(x).item() == 0
    assert module(x).item() == 0 and "_call_impl" not in vars(module)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x


def test_code_reaches_what_has_any_name_for_a_while() -> None:
    names = ['a"b', "a\nb", "a\\x41", "class", "\ufb01", "fi", "0", "plain"]
    layers = {name: nn.Linear(1, 1) for name in names}
    root = nn.ModuleDict(layers)
    graph = fx.Graph()
    graph.output([graph.get_attr(f"{name}.weight") for name in names])
    with pytest.raises(SyntaxError):
        fx.GraphModule(root, graph)
    with any_names():
        reached = fx.GraphModule(root, graph)()
    assert [value.data_ptr() for value in reached] == [layer.weight.data_ptr() for layer in layers.values()]
    with pytest.raises(SyntaxError):
        fx.GraphModule(root, graph)


def test_translations_of_operators_are_read_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    read = Mock(side_effect=lambda **options: registry())
    monkeypatch.setattr(registry, "from_torchlib", read)
    for _ in range(2):
        with translations_kept():
            made = registry().from_torchlib(opset_version=18)
        # What one export adds is no other's.
        assert not made.functions
        made.register_op(torch.ops.aten.relu.default, lambda x: x)
        assert made.functions
    assert read.call_count == 1
    with translations_kept():
        registry().from_torchlib(opset_version=20)
    assert read.call_count == 2
    registry.from_torchlib()
    assert read.call_count == 3


class Mixed(nn.Module):
    def forward(self, x: Tensor, ids: Tensor) -> Any:
        return x.relu() * 2 + ids, ids / 2 + x.shape[0], torch.where(x > 0, x, ids).relu(), x.half() ** ids


def test_dtypes_are_made_alike_by_results_that_are_known() -> None:
    passes: Any = importlib.import_module("torch.onnx._internal.exporter._fx_passes")
    relu, free = torch.ops.aten.relu.default, ({0: torch.export.Dim.DYNAMIC},) * 2

    def made_alike() -> tuple[list[Any], list[Any]]:
        program = torch.export.export(Mixed(), (torch.ones(3), torch.arange(3)), dynamic_shapes=free, strict=False)
        own = fx.Interpreter.call_function
        with patch.object(fx.Interpreter, "call_function", autospec=True, side_effect=own) as run:
            passes.insert_type_promotion_nodes(program.graph_module)
        nodes = [(node.name, node.target, node.args, str(node.meta.get("val"))) for node in program.graph.nodes]
        return [tuple(map(str, node)) for node in nodes], [call.args[1] for call in run.call_args_list]

    nodes, every = made_alike()
    with results_known():
        assert made_alike()[0] == nodes
        made = made_alike()[1]
    assert every.count(relu) == 2 and relu not in made and 0 < len(made) < len(every)
    assert made_alike()[1] == every


def test_calls_of_autograd_functions_are_replaced_for_a_while() -> None:
    def apply(x: Tensor) -> Any:
        return Double.apply(x)

    own, x = torch.autograd.Function.__dict__["apply"], torch.ones(())
    with _torch.autograd_calls(lambda kind, run: lambda *args: (kind, run(*args))):
        kind, made = apply(x)
    assert kind is Double and made.item() == 2
    assert apply(x).item() == 2 and torch.autograd.Function.__dict__["apply"] is own


def test_calls_of_autograd_functions_that_were_taken_before_are_replaced_too() -> None:
    taken: Any = Double.apply
    own, x = Double.__dict__["forward"], torch.ones((), requires_grad=True)
    seen: list[Any] = []

    def stand_in(kind: type, run: Callable[..., Any]) -> Callable[..., Any]:
        seen.append((kind, torch.is_grad_enabled()))
        return lambda *args: run(*args) + 5

    with _torch.autograd_calls(stand_in), ThreadPoolExecutor() as others:
        assert taken(x).item() == 7 and seen == [(Double, True)]
        assert others.submit(taken, x).result().item() == 2 and len(seen) == 1
        assert taken(x).item() == 7 and len(seen) == 2
    assert taken(x).item() == 2 and Double.__dict__["forward"] is own
    assert "__init__" not in vars(torch.autograd.function.BackwardCFunction)


class Meeting(torch.autograd.Function):
    met: Sequence[Tensor]

    @staticmethod
    def forward(ctx: Any, factor: int, *tensors: Tensor) -> Tensor:
        Meeting.met = tensors
        return factor * torch.stack(tensors).sum(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor, None]:
        return None, 3 * gradient, gradient, None


def test_autograd_functions_meet_no_leaf_whose_gradient_is_collected() -> None:
    weight, frozen = nn.Parameter(torch.ones(2)), torch.ones(2)
    made = weight * 1
    _torch.applied(Meeting, 3, weight, made, frozen).sum().backward()
    assert [one.is_leaf for one in Meeting.met] == [False, False, True]
    assert Meeting.met[0].data_ptr() == weight.data_ptr() and Meeting.met[1] is made and Meeting.met[2] is frozen
    assert weight.grad is not None and weight.grad.tolist() == [4, 4]


def test_hooks_on_the_calls_of_all_modules_are_noticed() -> None:
    assert not _torch.global_module_hooks()
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda module, args: None)
    assert _torch.global_module_hooks()
    handle.remove()
    assert not _torch.global_module_hooks()


def test_a_trace_says_nothing_and_is_heard_again_afterwards(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyError), _torch.quiet_tracing():
        warnings.warn("of the model's style", stacklevel=1)
        logging.getLogger("a tracer").error("a graph")
        print("a graph", file=sys.stderr)
        raise KeyError
    assert capsys.readouterr().err == "" and caplog.records == []
    logging.getLogger("a tracer").error("heard")
    assert [record.message for record in caplog.records] == ["heard"]
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)


def test_sizes_that_may_vary_have_an_example_and_no_fixed_size() -> None:
    rows, columns = FakeTensorMode(shape_env=ShapeEnv()).from_tensor(torch.zeros(4, 1)).shape
    assert _torch.fixed_size(rows) is None and _torch.example_of(rows) == 4
    assert _torch.fixed_size(columns) == 1 and _torch.fixed_size(3) == 3 == _torch.example_of(3)
    sizes, expression, hint, constant = _torch.expression_of(rows * 2)
    assert hint == 8
    again = _torch.symbolic_number(torch.SymInt, sizes, expression, hint, constant)
    assert str(again) == str(rows * 2)
    with pytest.raises(TypeError, match="is no expression of sizes"):
        _torch.expression_of(SimpleNamespace(node=None))


def test_steps_of_sizes_that_depend_on_values_are_written_without_bounds() -> None:
    counted = ShapeEnv().create_unbacked_symint()
    step: Any = torch.sym_max(counted, 1) * 8
    tidy: Any = tidy_size(step)
    assert not has_example(tidy) and tidy.node.expr == 8 * counted.node.expr != step.node.expr


def test_a_lean_trace_writes_the_code_of_graphs_that_are_called_alone() -> None:
    class Own(fx.GraphModule):
        pass

    with _torch.lean_tracing({}, solved=False):
        gm, own = (kind(nn.Module(), fx.symbolic_trace(nn.ReLU()).graph) for kind in (fx.GraphModule, Own))
        assert not hasattr(gm, "_code") and "relu" in own.code
        assert gm(torch.tensor([-1.0, 2.0])).tolist() == [0, 2] and "relu" in gm.code
        idle = fx.GraphModule(nn.Module(), gm.graph)
    assert idle(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]
    assert "relu" in fx.GraphModule(nn.Module(), gm.graph).code


def test_tensors_beside_others_have_the_steps_of_torch_without_bounds() -> None:
    fakes = FakeTensorMode(shape_env=ShapeEnv())
    for sizes in ((), (3,), (2, 3, 4), (2, 0, 3), (0,)):
        assert _torch.empty_beside(torch.ones(1), sizes).stride() == torch.empty(sizes).stride()
    wide: Any = fakes.from_tensor(torch.ones(6, 8))
    half = (wide.shape[0] - 1) // 2
    made = _torch.empty_beside(wide, (3, half, wide.shape[1]))
    assert "Max" in str(torch.empty((3, half, half), device="meta").stride(0))
    assert made.shape == (3, half, wide.shape[1]) and "Max" not in str(made.stride())


def test_operators_are_seen_before_they_run() -> None:
    seen: list[str | None] = []
    x = torch.ones(2)

    def run(operator: Any, args: Any, kwargs: Any) -> Any:
        seen.append(_torch.operator_name(operator))
        return operator(*args, **kwargs)

    with OperatorsRun(run):
        made = (x + 1).relu()
    assert seen == ["aten.add.Tensor", "aten.relu.default"] and made.tolist() == [2, 2]
    assert _torch.operator_name(torch.ops.aten.relu) == "aten.relu" and _torch.operator_name(torch.relu) is None


def test_views_share_their_memory() -> None:
    x = torch.zeros(4)
    assert _torch.memory_of(x) == _torch.memory_of(x[1:]) != _torch.memory_of(x.clone())


def test_transforms_and_forward_mode_are_noticed_while_they_last() -> None:
    seen = []

    def note(x: Tensor) -> Tensor:
        seen.append(_torch.is_transformed())
        return x.sum()

    x = torch.ones(3)
    note(x)
    torch.func.grad(note)(x)
    torch.func.vmap(note)(torch.ones(2, 3))
    with torch.autograd.forward_ad.dual_level():
        note(x)
    note(x)
    assert seen == [False, True, True, True, False]


def test_gamma_samples_come_of_the_generator() -> None:
    concentration = torch.full((20_000,), 3.0, dtype=torch.float64)
    one, same = (_torch.standard_gamma(concentration, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, same) and one[0] != one[1]
    # Mean and variance are both the concentration; five standard errors of the mean.
    assert abs(one.mean() - 3) < 5 * (3 / 20_000) ** 0.5 and abs(one.var() - 3) < 0.3


def test_a_size_is_known_inside_vmap_and_traces_warn_of_it() -> None:
    def scaled(x: Tensor) -> Tensor:
        made: Tensor = x * torch.ops.aten.sym_size.int(x, 0)
        return made

    x = torch.randn(3, 4)
    assert torch.equal(torch.vmap(scaled)(x), x * 4)
    assert torch.equal(torch.vmap(scaled, in_dims=1, out_dims=1)(x), x * 3)
    # As of a size that Python makes a number of.
    untyped: Any = torch.jit
    with pytest.warns(untyped.TracerWarning, match="Converting a tensor to a Python integer"):
        untyped.trace(scaled, (x,))


@pytest.mark.slow
def test_dynamo_knows_torchs_functions_before_others_stand_in_their_place() -> None:
    code = (
        "import sys, torch; from repl_fx.tracing.questions import answering\n"
        "with answering(torch.compiler, is_compiling=lambda: True):\n"
        "    import torch._dynamo\n"
        "print(torch.compile(lambda x: x if torch.compiler.is_compiling() else -x, backend='eager', fullgraph=True)(1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "1\n", done.stderr


def test_no_error_may_leave_the_answer_for_a_device() -> None:
    found: dict[bool, set[str]] = {True: set(), False: set()}

    def run(operator: Any, args: Any, kwargs: Any) -> Any:
        found[may_not_raise(sys._getframe())].add(str(operator))
        return operator(*args, **kwargs)

    with FakeTensorMode(), OperatorsRun(run):
        weight = torch.zeros(2, 2, requires_grad=True)
        weight.t()
    assert found[True] == {"prim.device.default"} and "aten.t.default" in found[False]
    assert not may_not_raise(sys._getframe()) and not may_not_raise(None)


def _unreadable(x: Tensor) -> Any:
    return undefined_for_torch_script(x)  # type: ignore[name-defined]  # noqa: F821


def _calls_it(x: Tensor) -> Any:
    return _unreadable(x)


def test_functions_that_torch_script_could_not_compile_stop_nothing() -> None:
    script: Any = torch.jit.script  # Without annotations in torch.
    with pytest.raises(RuntimeError, match="undefined_for_torch_script"):
        script(_calls_it)
    with scripts_as_written():
        assert torch.ones(2).sum() == 2
