"""Random networks through every stage, none of them silently different; `--attack-minutes` takes more of them."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from tests.attack import networks
from tests.attack.judge import judge
from tests.attack.steps import differences, run_steps

# Attention without a batch under hooks on tensors; one block several times over behind a stem without gradients. The
# benchmark `attack` judges the others.
SEEDS = (6, 10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network_is_right_or_refused(seed: int) -> None:
    verdict = judge(seed)
    assert verdict.outcome in ("right", "refused"), str(verdict)


def test_further_networks_are_right_or_refused(request: pytest.FixtureRequest) -> None:
    minutes = request.config.getoption("--attack-minutes")
    if not minutes:
        pytest.skip("give --attack-minutes N for more random networks")
    end = time.monotonic() + 60 * minutes
    seed, failures = 1000, []
    while time.monotonic() < end:
        verdict = judge(seed)
        if verdict.outcome in ("wrong", "crashed"):
            failures.append(str(verdict))
        seed += 1
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_seed_gives_the_same_network_each_time(seed: int) -> None:
    networks.network.cache_clear()
    before = torch.get_rng_state()
    first, second = networks.make(seed), networks.make(seed)
    assert torch.equal(before, torch.get_rng_state())
    steps = [run_steps(model, lambda n: networks.example_inputs(seed, n), (True, False)) for model in (first, second)]
    assert differences(*steps) == []


@pytest.mark.slow
def test_a_seed_gives_the_same_network_in_another_process() -> None:
    program = (
        "from tests.attack import networks; model = networks.make(5);"
        "print(networks.describe(5), sum(float(p.detach().double().sum()) for p in model.parameters()))"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    total = sum(float(p.detach().double().sum()) for p in networks.make(5).parameters())
    assert other == f"{networks.describe(5)} {total}"


@pytest.mark.slow
def test_the_seeds_differ() -> None:
    assert len({tuple(networks.describe(seed)) for seed in range(20)}) == 20
