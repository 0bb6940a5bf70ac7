"""What the globals of a script cost: `capture` and `transform` beside a gigabyte of data, and without.

    python -m benchmarks.script_globals              5 runs of each
    python -m benchmarks.script_globals --runs 3 --named

Each run is a script of its own, in which a small model's class stands: with an array of 1 GB, a list of five million
numbers and a dict of a million strings among its globals, or without; the two take turns. With `--named`, the forward
reads an element of each. Seconds are those of the processor, after a warm-up on another model; memory is what the peak
grows by meanwhile, in MiB, above what the script holds itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SCRIPT = """
import json, resource, time
import numpy as np
import torch
from torch import nn
import repl_fx

array, numbers = np.ones({size} // 8), list(range({size} // 200))
words = {{str(i): "w" * 9 for i in range({size} // 1000)}}

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.relu(self.fc(x))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(6)))

    def forward(self, x):
        return self.blocks(x){named}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

# One draw in some 500 has a layer whose ReLUs are all off, which no surrogate could learn from.
torch.manual_seed(0)
x = torch.randn(2, 8)
other = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)))
repl_fx.transform(other, (x,), surrogate="blend")
before, found = peak(), {{}}
for name, run in {{"capture": repl_fx.capture, "transform": repl_fx.transform}}.items():
    begin = time.process_time()
    run(Net(), (x,))
    found[name] = time.process_time() - begin
found["memory"] = peak() - before
print(json.dumps(found))
"""
NAMED = " * float(array[0]) * numbers[1] * len(words['1'])"


def run(size: int, named: bool) -> dict[str, float]:
    """Seconds and MiB of one run.

    Args:
        size: of the data, in bytes.
        named: whether the forward reads an element of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "script.py"
        file.write_text(SCRIPT.format(size=size, named=NAMED if named else ""))
        done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description="What the globals of a script cost capture and transform.")
    parser.add_argument("--runs", type=int, default=5, help="runs with the data, and without (default 5)")
    parser.add_argument("--size", type=int, default=10**9, help="bytes of data (default a gigabyte)")
    parser.add_argument("--named", action="store_true", help="the forward reads an element of each")
    options = parser.parse_args(argv)
    if options.runs < 1:
        parser.error("--runs must be 1 or more")
    sizes = {"without": 2000, "with": options.size}
    found: dict[str, list[dict[str, float]]] = {which: [] for which in sizes}
    for _ in range(options.runs):
        for which, size in sizes.items():
            found[which].append(run(size, options.named))
    print("globals   what       median (from - to)")
    for which, runs in found.items():
        for what, unit in {"capture": "s", "transform": "s", "memory": "MiB"}.items():
            values = [one[what] for one in runs]
            spread = f"({min(values):.2f} - {max(values):.2f})"
            print(f"{which:9} {what:10} {statistics.median(values):.2f} {unit} {spread}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
