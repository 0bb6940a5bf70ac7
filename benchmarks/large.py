"""CPU seconds and peak memory of a compression of a Llama of a billion parameters, stage by stage.

    OMP_NUM_THREADS=2 python -m benchmarks.large                    8 layers, 1.0 billion parameters, float32
    OMP_NUM_THREADS=2 python -m benchmarks.large --surrogate linear
    python -m benchmarks.large --layers 4 --width 64 --hidden 128   the same stages on a small one

The weights are random, and the data are random ids: what the stages compute means nothing, what they take does. Peak
memory is that of the process, with the model's own weights.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import repl_fx
from repl_fx.environment.machine import cpu_model
from repl_fx.sources.source import import_zoo


def llama(layers: int, width: int, hidden: int, vocabulary: int) -> Any:
    """A decoder of transformers, without a cache."""
    transformers = import_zoo("transformers", "benchmarks.large")
    config = transformers.LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=hidden,
        num_attention_heads=max(1, width // 128),
        vocab_size=vocabulary,
        use_cache=False,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def peak_gib() -> float:
    """Most resident memory of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kibibytes, but bytes on a Mac.
    return used / (2**30 if sys.platform == "darwin" else 2**20)


def stages(model: Any, samples: int, tokens: int, budget: float, surrogate: str) -> list[tuple[str, float, float, str]]:
    """Name, CPU seconds, peak GiB behind it and the result of each stage."""
    drawn = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    batches = [torch.randint(vocabulary, (2, tokens), generator=drawn) for _ in range(-(-samples // 2))]
    rows: list[tuple[str, float, float, str]] = []

    def stage(name: str, run: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = run()
        rows.append((name, time.process_time() - began, peak_gib(), str(result).splitlines()[0][:70]))
        return result

    captured = stage("capture", lambda: repl_fx.capture_parts(model, (batches[0],)))
    scores = stage("score", lambda: repl_fx.score_blocks(captured, batches))
    worth = scores.of("influence")
    options: Any = {"captured": captured, "surrogate": surrogate, "budget": {"params": budget}, "scores": worth}
    result = stage("plan and cut", lambda: repl_fx.transform(model, (batches[0],), check=False, **options))
    stage("fit", lambda: repl_fx.fit(result, batches))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages and show a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=3072)
    parser.add_argument("--hidden", type=int, default=8192, help="width inside the MLPs")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="in a sample")
    parser.add_argument("--budget", type=float, default=0.8, help="share of the parameters")
    parser.add_argument("--surrogate", default="trained", help="a surrogate that is fitted, such as 'linear'")
    given = parser.parse_args(argv)
    model = llama(given.layers, given.width, given.hidden, given.vocabulary)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    before = peak_gib()
    rows = stages(model, given.samples, given.tokens, given.budget, given.surrogate)
    data = f"{given.samples} samples of {given.tokens} tokens"
    table = Table(title=f"{given.surrogate}: {parameters:,} parameters, {data}, {cpu_model()}")
    for head in ("stage", "CPU seconds", "peak GiB", ""):
        table.add_column(head)
    table.add_row("build", "", f"{before:.2f}", "")
    for name, seconds, peak, found in rows:
        table.add_row(name, f"{seconds:.1f}", f"{peak:.2f}", found)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
