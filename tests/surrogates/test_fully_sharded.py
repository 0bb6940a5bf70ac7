"""Rewritten networks under FSDP2: what two processes train is what one process trains."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.surrogates.shared.synthesis import Synthesis
from tests.nets import Attention, ConvNet, TokenNet, TransformerBlock, as_after_training, images, rewritten, tokens
from tests.surrogates.fully_sharded import Outcome, Task, trained
from tests.surrogates.nets import GRID, Patches, Scaled
from tests.surrogates.stand_ins import KINDS, with_stand_in

ROOT = Path(__file__).parents[2]
PROCESSES = 2


class CausalBlock(TransformerBlock):
    """Attends to what came before."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], 3, self.attn.heads, -1)
        q, k, v = self.attn.qkv(self.norm1(x)).reshape(shape).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + self.attn.proj(mixed)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


def _gpt() -> nn.Module:
    net = TokenNet(depth=5)
    net.blocks = nn.Sequential(*(CausalBlock(16) for _ in range(5)))
    return net


def _turns() -> nn.Module:
    """Blocks of two kinds by turns: two are replaced together, and one of these has the surrogate in place."""
    net = TokenNet(depth=6)
    net.blocks = nn.Sequential(*(CausalBlock(16) if i % 2 else TransformerBlock(16) for i in range(6)))
    return net


class _Loop(Patches):
    """Adds what its layers return in a loop: surrogates of two layers have their weights in one."""

    def __init__(self) -> None:
        super().__init__()
        mlp = (nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        pairs = ((Attention(16, 2, 0.0), nn.Sequential(*copy.deepcopy(mlp))) for _ in range(5))
        self.blocks = nn.Sequential(*(nn.Sequential(nn.LayerNorm(16), layer) for pair in pairs for layer in pair))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.positions
        for layer in self.blocks:
            x = layer(x) + x
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def _convnext() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *(Scaled(8) for _ in range(5)), nn.Flatten())


# Two blocks are replaced in each, so that their syntheses run together.
NETS: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "vit": lambda: (Patches(depth=5), tokens(length=GRID)),
    "gpt": lambda: (_gpt(), tokens()),
    "turns": lambda: (_turns(), tokens()),
    "loop": lambda: (_Loop(), tokens(length=GRID)),
    "resnet": lambda: (ConvNet(depth=5), images()),
    "convnext": lambda: (_convnext(), images()),
}


def _called(gm: fx.GraphModule) -> tuple[str, ...]:
    """The modules that a graph calls and that have parameters of two dimensions or more, or synthesise such."""
    paths = dict.fromkeys(str(node.target) for node in gm.graph.nodes if node.op == "call_module")
    modules = {path: gm.get_submodule(path) for path in paths}
    return tuple(p for p, m in modules.items() if isinstance(m, Synthesis) or any(w.ndim > 1 for w in m.parameters()))


def _together(gm: fx.GraphModule) -> tuple[str, ...]:
    """The syntheses that another one runs, and that nobody calls."""
    found = {path: module for path, module in gm.named_modules() if isinstance(module, Synthesis)}
    return tuple(p for p, m in found.items() if p not in _called(gm) and any(True for _ in m.parameters()))


def _blocks(net: nn.Module) -> tuple[str, ...]:
    return tuple(f"blocks.{i}" for i in range(3))


def _nothing(gm: fx.GraphModule) -> tuple[str, ...]:
    return ()


def _called_and_together(gm: fx.GraphModule) -> tuple[str, ...]:
    return (*_called(gm), *_together(gm))


Units = Callable[[fx.GraphModule], tuple[str, ...]]
# What is sharded beside the whole, whether the network computes in bfloat16, and the mesh where it has two axes.
_CASES: Mapping[str, tuple[str, str, Units, bool, tuple[int, int] | None]] = {
    "vit coarse": ("vit", "coarse", _called_and_together, False, None),
    "vit coarse, half": ("vit", "coarse", _called, True, None),
    "vit bottleneck": ("vit", "bottleneck", _called_and_together, False, None),
    "vit bottleneck, replicas": ("vit", "bottleneck", _called, False, (2, 1)),
    "vit bottleneck, half": ("vit", "bottleneck", _called, True, None),
    "vit blend": ("vit", "blend", _called, False, None),
    "vit blend, replicas": ("vit", "blend", _called, False, (2, 1)),
    "vit blend, whole": ("vit", "blend", _nothing, False, None),
    "vit coarse, whole, half": ("vit", "coarse", _nothing, True, None),
    "vit blend, half": ("vit", "blend", _called, True, None),
    "gpt reuse": ("gpt", "reuse", _called_and_together, False, None),
    "gpt reuse, half": ("gpt", "reuse", _called, True, None),
    "resnet slim": ("resnet", "slim", _called_and_together, False, None),
    # Of batch norms in bfloat16 the CPU has no kernel.
    "convnext slim, half": ("convnext", "slim", _called, True, None),
}


# Models in place, sharded block by block, surrogates too: the net, the surrogate, and whether in bfloat16.
_IN_PLACE: Mapping[str, tuple[str, str, bool]] = {
    "vit coarse, in place": ("vit", "coarse", False),
    "vit bottleneck, in place": ("vit", "bottleneck", False),
    "vit bottleneck, in place, half": ("vit", "bottleneck", True),
    "vit blend, in place": ("vit", "blend", False),
    "vit blend, in place, half": ("vit", "blend", True),
    "gpt reuse, in place": ("gpt", "reuse", False),
    "gpt reuse, in place, half": ("gpt", "reuse", True),
    "turns reuse, in place": ("turns", "reuse", False),
    "turns bottleneck, in place": ("turns", "bottleneck", False),
    "loop coarse, in place": ("loop", "coarse", False),
    "loop blend, in place": ("loop", "blend", False),
    "resnet slim, in place": ("resnet", "slim", False),
}


def _task(case: str) -> Task:
    net, surrogate, units, half, mesh = _CASES[case]
    result, x = _rewritten(net, surrogate)
    gm = result.graph_module
    return _of(case, copy.deepcopy(gm), units(gm), x, half, mesh)


def _task_in_place(case: str) -> Task:
    net, surrogate, half = _IN_PLACE[case]
    result, x = _rewritten(net, surrogate)
    assert result.in_place.model is not None
    units = tuple(f"blocks.{name}" for name, _ in result.model.get_submodule("blocks").named_children())
    return _of(case, copy.deepcopy(result.model), units, x, half)


@functools.cache
def _net(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return NETS[name]()


@functools.cache
def _rewritten(net: str, surrogate: str) -> tuple[repl_fx.TransformResult, Tensor]:
    # One model, so that one capture serves for all of its surrogates.
    model, x = _net(net)
    result = rewritten(model, x, surrogate)
    as_after_training(result.graph_module)
    return result, x


def _of(
    case: str, module: nn.Module, units: tuple[str, ...], x: Tensor, half: bool, mesh: tuple[int, int] | None = None
) -> Task:
    # One on either side of the evaluation; the examples are the same, so that a smaller loss is that of better weights,
    # and each process has those of the other in the second.
    first = torch.randn(2 * PROCESSES, *x.shape[1:])
    batches = torch.stack([first, first.flip(0)])
    return Task(case, module if half else module.double(), units, batches if half else batches.double(), half, mesh)


def _stand_in(case: str) -> Task:
    torch.manual_seed(0)
    net = with_stand_in(case.removesuffix(", half"))
    return _of(case, net, _blocks(net), torch.randn(1, 6, 15), case.endswith("half"))


def _stays_gathered() -> Task:
    task = _stand_in("blend")
    task.name, task.reshard = "stays gathered", False
    return task


_STAND_INS = (*KINDS, "blend, half", "slices, half", "of its own, half")
_ALL = (*_CASES, *_IN_PLACE, *_STAND_INS)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Task, list[Outcome]]]]:
    """The tasks, and what came of them in each process."""
    pytest.importorskip("torch.distributed.fsdp")
    directory = tmp_path_factory.mktemp("fully_sharded")
    tasks = [*map(_task, _CASES), *map(_task_in_place, _IN_PLACE), *map(_stand_in, _STAND_INS)]
    refused = _stays_gathered()
    torch.save([*tasks, refused], directory / "tasks.pt")
    command = [sys.executable, "-m", "tests.surrogates.fully_sharded", str(directory), str(PROCESSES)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [torch.load(directory / f"outcomes_{rank}.pt", weights_only=False) for rank in range(PROCESSES)]
    for made in found:
        assert "leave shared_synthesis out" in made.pop("refused")
        # Its neighbours' weights are still there after the evaluation, and go before all gradients are made.
        assert "call reshard() on these after it" in made.pop(refused.name)
        failed = {name: outcome for name, outcome in made.items() if isinstance(outcome, str)}
        assert not failed
    yield {task.name: (task, [Outcome(**made[task.name]) for made in found]) for task in tasks}


def _apart(found: Tensor, wanted: Tensor) -> float:
    """The distance, as a fraction of the length of what was wanted."""
    return float((found.to(wanted.dtype) - wanted).norm() / wanted.norm().clamp(min=1e-9))


@pytest.mark.slow
@pytest.mark.parametrize("case", _ALL)
def test_two_processes_train_what_one_does(case: str, trainings: Mapping[str, tuple[Task, list[Outcome]]]) -> None:
    task, outcomes = trainings[case]
    alone = trained(copy.deepcopy(task), range(PROCESSES), PROCESSES, lambda tensor: tensor)
    # Of numbers in bfloat16, three digits are the same.
    near = 5e-2 if task.half else 1e-11
    assert any("surrogate" in name or "synthesis" in name for name in alone.gradients)
    for outcome in outcomes:
        assert outcome.gradients.keys() == alone.gradients.keys()
        for found, wanted in ((outcome.gradients, alone.gradients), (outcome.parameters, alone.parameters)):
            far = {name: _apart(found[name], wanted[name]) for name in wanted}
            assert max(far.values()) < near, {name: value for name, value in far.items() if value >= near}
        if "resnet" not in case:
            # Statistics of batch norms are of each process alone.
            assert all(_apart(*pair) < near for pair in zip(outcome.evaluated, alone.evaluated, strict=True))
    losses = torch.tensor([outcome.losses for outcome in outcomes]).mean(0)
    torch.testing.assert_close(losses, torch.tensor(alone.losses), rtol=max(near, 1e-6), atol=1e-6)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_evaluations_change_with_the_weights(trainings: Mapping[str, tuple[Task, list[Outcome]]]) -> None:
    """What FSDP2 gathers anew has the version of what it gathered before, and often the place."""
    for case in ("vit blend, whole", "vit blend"):
        for outcome in trainings[case][1]:
            assert _apart(*outcome.evaluated) > 0.1
