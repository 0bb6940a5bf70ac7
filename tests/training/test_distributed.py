"""Two processes train what one does."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.training.data.user_code import lost_worker
from repl_fx.training.distributed import facts, fingerprint, require_possible, unused_parameters
from repl_fx.training.processes import Processes
from repl_fx.training.run import CHECKPOINT, CONFIG, DATA, LOGS, RESULT, STATE
from repl_fx.training.train_config import TrainConfig
from tests.training.forks import LIBRARIES, Forks, Request
from tests.training.runs import Net, pictures
from tests.training.two_processes import CASES, SHARDED, environments, rewritten, trained, trajectory


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    """Networks with surrogates in place, by surrogate."""
    return {surrogate: rewritten(surrogate) for surrogate in ("auto", "bottleneck", "blend")}


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """What processes are copies of."""
    with Forks("tests.training.two_processes", *LIBRARIES) as forks:
        yield forks


@pytest.fixture(scope="module")
def sharded(forks: Forks, models: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of sharded runs of two processes."""
    directory = tmp_path_factory.mktemp("together")
    torch.save(models, directory / "models.pt")
    _train(forks, directory, SHARDED)
    return directory


@pytest.fixture(scope="module")
def together(forks: Forks, sharded: Path) -> Path:
    """The directory of all runs of two processes."""
    _train(forks, sharded, *(case for case in CASES if case != SHARDED))
    return sharded


def _train(forks: Forks, directory: Path, *cases: str) -> None:
    script = directory / "script.py"
    script.write_text("import runpy; runpy.run_module('tests.training.two_processes', run_name='__main__')")
    request = Request(str(script), (str(directory), *cases), environments(), limit=540)
    for code, _, errors in forks.ended(request):
        assert code == 0, errors[-3000:]


def _apart(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(float((found[n] - wanted[n]).norm() / wanted[n].norm().clamp(min=1e-3)) for n in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_does(
    case: str, models: dict[str, nn.Module], together: Path, tmp_path: Path
) -> None:
    weights = trained(case, models, tmp_path, strategy="auto")
    alone, found = trajectory(tmp_path), trajectory(together / case)
    # An epoch has 12 batches, of which two make a step where they are accumulated.
    assert len(alone["loss"]) == 24 and len(alone["test_loss"]) in (2, 4)
    assert sum(alone["loss"][-6:]) < sum(alone["loss"][:6]) - 0.6
    assert found.keys() == alone.keys()
    for name, values in alone.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(values), rtol=2e-5, atol=1e-6)
    assert _apart(torch.load(together / case / "weights.pt", weights_only=True), weights) < 2e-5


@pytest.mark.slow
def test_sharded_runs_go_on_from_the_checkpoint_that_is_whole(sharded: Path) -> None:
    state = sharded / "fsdp2 broken" / STATE
    assert (state / LOGS / "from_step_17").exists()
    assert {path.name for path in state.iterdir()} == {CHECKPOINT, CONFIG, DATA, LOGS, RESULT}
    names = ("fsdp2 broken", SHARDED)
    found, wanted = (torch.load(sharded / name / "weights.pt", weights_only=True) for name in names)
    assert _apart(found, wanted) == 0


@pytest.mark.slow
def test_another_number_of_processes_goes_on_or_is_refused(
    models: dict[str, nn.Module], together: Path, tmp_path: Path
) -> None:
    shutil.copytree(together / "ddp broken", tmp_path / "run")
    weights = trained("ddp auto", models, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / STATE / LOGS / "from_step_17").exists()
    assert _apart(weights, torch.load(together / "ddp auto" / "weights.pt", weights_only=True)) < 2e-5
    with pytest.raises(repl_fx.BadInput, match="fsdp2 shards over several processes, and there is one; give --devices"):
        trained(SHARDED, models, together / "fsdp2 broken", resume=True)
    with pytest.raises(repl_fx.BadInput, match=r"last\.ckpt is not one of strategy ddp; go on with the one it is of"):
        trained(SHARDED, models, together / "fsdp2 broken", resume=True, strategy="ddp")
    with pytest.raises(repl_fx.BadInput, match=r"is of another model or plan than .* has; train anew with --force"):
        trained(SHARDED, {"blend": models["auto"]}, together / "fsdp2 broken", resume=True, strategy="ddp")


def test_what_processes_have_to_have_alike(models: dict[str, nn.Module]) -> None:
    data, config = pictures(), TrainConfig(data_dir="here")
    own = facts(models["blend"], data, config, None)
    assert own == facts(copy.deepcopy(models["blend"]), data, config.changed(data_dir="there"), None)
    for changed, differs in (
        (facts(models["bottleneck"], data, config, None), {"blocks of the plan", "parameters"}),
        (facts(models["blend"], pictures(47), config, None), {"data"}),
        (facts(models["blend"], data, config.changed(lr=0.5), None), {"settings"}),
        (facts(models["blend"], data, config, 7), {"steps in the checkpoint"}),
    ):
        assert {name for name in own if own[name] != changed[name]} == differs
    assert "blend" in own["blocks of the plan"][0]
    assert fingerprint(models["blend"]) not in (fingerprint(models["auto"]), fingerprint(Net()))


def test_settings_that_several_processes_cannot_have() -> None:
    two = Processes(0, 2, 0, 2)
    with pytest.raises(repl_fx.BadInput, match="sync_batchnorm is for GPUs"):
        require_possible(TrainConfig(sync_batchnorm=True, device="cpu"), two)
    require_possible(TrainConfig(sync_batchnorm=True, device="cuda"), two)
    for settings, line in (
        ({"ema": 0.9}, "ema does not go with fsdp2; leave it out, or give --strategy ddp"),
        ({"precision": "float16"}, "precision float16 does not go with fsdp2; .* give --precision bfloat16"),
    ):
        require_possible(TrainConfig(**settings, device="cpu"), two)
        with pytest.raises(repl_fx.BadInput, match=line):
            require_possible(TrainConfig(**settings, device="cpu", strategy="fsdp2"), two)


def test_parameters_without_gradients_are_a_line() -> None:
    problem = RuntimeError("Expected to have finished reduction … `find_unused_parameters=True` …")
    refused = unused_parameters(problem)
    assert refused is not None and "give --find-unused" in str(refused)
    assert unused_parameters(RuntimeError("other")) is None


def test_a_process_of_the_loader_that_was_ended_is_a_line() -> None:
    refused = lost_worker(RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. "))
    assert refused is not None
    assert str(refused).endswith("(DataLoader worker (pid 7) is killed by signal: Terminated); go on with --resume")
    assert lost_worker(RuntimeError("other")) is None
    # What the loader sees first may be the end of the pipe.
    refused = lost_worker(ConnectionResetError(104, "Connection reset by peer"))
    assert refused is not None and "(ConnectionResetError: [Errno 104] Connection reset by peer); go on" in str(refused)
