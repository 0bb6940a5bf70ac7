"""How many small faults the tests notice: a seeded sample of mutants, each judged by the tests of its module.

    python -m benchmarks.mutants                               300 mutants, one at a time
    python -m benchmarks.mutants --workers 8                   the same, several at a time
    python -m benchmarks.mutants --only 'passes/*'             a part, while tests are written
    python -m benchmarks.mutants --list                        the sample, without a test
    python -m benchmarks.mutants --report-only                 what an interrupted run has judged

Mutated, with the operators of cosmic-ray, are the passes, the surrogates, the plan, the export, tracing, planning,
fitting, in_place and artifact. With `--only`, which may be given several times, the sample is drawn of those modules:
`--count 100 --only 'repl_fx/tracing/*' --only 'repl_fx/planning/*'`. A place in the code is sampled at most once,
however many mutants there are of it, and a place stays in or out of the sample while other lines change. Left out by
rule are mutants that compute the same or change only words:

- annotations, type aliases, and what stands under `if TYPE_CHECKING`;
- `raise` statements, assertions, and f-strings: the words of an error or of a name;
- decorators and their arguments (`frozen=True` of a dataclass), and `strict=` of `zip`;
- `==` for `is` and the reverse, where the values are singletons, or small numbers and words that Python holds once.

The tests of a module are those at the mirrored place in tests/, and those that `TESTS` names. They run once without a
mutant, with coverage.py, which says what lines each of them runs. A mutant is judged by the tests that run its line,
the quickest first, or by all of the module where none does. They run in a process that is forked from one with torch
loaded already, on a copy of the tree, and stop at the first failure. A mutant that runs five times as long as its tests
do without it, and at least a minute, is a timeout, and counts as killed. Judgements are kept in `--out`: a second run
judges only mutants of modules whose code or tests have changed, and with `--again` the survivors too.

Exit status: 0; 1 where less than `--floor` of the sample is killed; 2 where the tests fail without a mutant.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
MUTATED = (
    "passes/*.py",
    "repl_fx/surrogates/*.py",
    "repl_fx/surrogates/shared/*.py",
    "repl_fx/export/*.py",
    "repl_fx/plan.py",
    "repl_fx/tracing/*.py",
    "repl_fx/tracing/parts/*.py",
    "repl_fx/planning/*.py",
    "repl_fx/fitting/*.py",
    "repl_fx/rewriting/*.py",
    "repl_fx/rewriting/in_place/*.py",
    "repl_fx/artifact/*.py",
)

# Tests of modules beside those at the mirrored place.
TESTS: dict[str, tuple[str, ...]] = {
    "repl_fx/plan.py": ("tests/test_pipeline.py",),
    "repl_fx/planning/make_plan.py": ("tests/test_pipeline.py", "tests/planning/test_budgets.py"),
    "repl_fx/planning/options.py": ("tests/test_pipeline.py",),
    "repl_fx/rewriting/apply.py": ("tests/test_pipeline.py", "tests/rewriting/test_trials.py"),
    "repl_fx/rewriting/folding.py": ("tests/test_pipeline.py",),
    "repl_fx/rewriting/result.py": ("tests/test_pipeline.py", "tests/rewriting/in_place/test_assembling.py"),
    "repl_fx/rewriting/settling.py": ("tests/test_pipeline.py", "tests/rewriting/test_settling.py"),
    "passes/check_graph.py": ("tests/passes/test_check_graph.py", "tests/passes/test_replace_blocks.py"),
    "repl_fx/planning/choose_blocks.py": ("tests/planning/test_choose_blocks.py", "tests/finding/test_find_similar.py"),
    "passes/replace_blocks.py": ("tests/passes/test_replace_blocks.py", "tests/finding/test_side_outputs.py"),
    "repl_fx/surrogates/shared/activations.py": (
        "tests/surrogates/shared/test_activations.py",
        "tests/surrogates/shared/test_recompute.py",
        "tests/surrogates/test_slim.py",
        "tests/surrogates/test_bottleneck.py",
    ),
    "repl_fx/planning/policies.py": ("tests/planning/test_policies.py", "tests/surrogates/test_coarse.py"),
    "repl_fx/surrogates/shared/branch_edits.py": (
        "tests/surrogates/shared/test_branch_edits.py",
        "tests/rewriting/test_check_training.py",
    ),
    "repl_fx/surrogates/shared/channels.py": ("tests/passes/test_write_in_place.py",),
    "repl_fx/surrogates/identity.py": ("tests/test_pipeline.py",),
    "repl_fx/surrogates/shared/norms.py": (
        "tests/surrogates/shared/test_norms.py",
        "tests/surrogates/shared/test_recompute.py",
        "tests/surrogates/test_slim.py",
        "tests/surrogates/test_bottleneck.py",
    ),
    "repl_fx/surrogates/shared/blended_weights.py": (
        "tests/surrogates/test_blend.py",
        "tests/surrogates/test_coarse.py",
        "tests/surrogates/test_slim.py",
    ),
    "repl_fx/surrogates/shared/matching.py": (
        "tests/surrogates/shared/test_matching.py",
        "tests/passes/test_replace_blocks.py",
    ),
    "repl_fx/surrogates/shared/builder.py": (
        "tests/surrogates/shared/test_matching.py",
        "tests/passes/test_replace_blocks.py",
    ),
    "repl_fx/surrogates/shared/site.py": (
        "tests/surrogates/shared/test_surrogate.py",
        "tests/surrogates/test_blend.py",
        "tests/surrogates/test_coarse.py",
    ),
    "repl_fx/surrogates/coarse.py": ("tests/surrogates/test_coarse.py", "tests/surrogates/test_slim.py"),
    "repl_fx/surrogates/shared/recompute.py": (
        "tests/surrogates/shared/test_recompute.py",
        "tests/surrogates/test_reuse.py",
    ),
    "repl_fx/surrogates/shared/weight_slices.py": (
        "tests/surrogates/shared/test_synthesis.py",
        "tests/surrogates/test_slim.py",
    ),
    "repl_fx/surrogates/shared/thin_block.py": ("tests/surrogates/test_slim.py",),
    "repl_fx/surrogates/shared/synthesis.py": (
        "tests/surrogates/shared/test_recompute.py",
        "tests/surrogates/test_slim.py",
    ),
    "repl_fx/surrogates/shared/thin_layer.py": (
        "tests/surrogates/shared/test_thin_layer.py",
        "tests/surrogates/test_bottleneck.py",
    ),
    "repl_fx/surrogates/shared/windows.py": ("tests/surrogates/test_coarse.py",),
    "repl_fx/export/translations.py": ("tests/export/test_edges.py",),
    "repl_fx/export/tensors.py": ("tests/export/test_onnx_model.py", "tests/export/test_layers.py"),
    "repl_fx/export/optimizing.py": ("tests/export/test_optimizing.py", "tests/export/test_onnx_model.py"),
    "repl_fx/artifact/exporting.py": ("tests/artifact/test_exporting.py", "tests/cli/test_export.py"),
    "repl_fx/artifact/store.py": ("tests/artifact/test_store.py", "tests/artifact/test_model_code.py"),
    "repl_fx/rewriting/in_place/attention_calls.py": (
        "tests/rewriting/in_place/test_attention_calls.py",
        "tests/surrogates/test_reuse.py",
    ),
    "repl_fx/rewriting/in_place/cutting.py": (
        "tests/rewriting/in_place/test_cutting.py",
        "tests/rewriting/in_place/test_assembling.py",
    ),
    "repl_fx/rewriting/in_place/surrogate_block.py": (
        "tests/rewriting/in_place/test_surrogate_block.py",
        "tests/rewriting/in_place/test_assembling.py",
    ),
    "repl_fx/rewriting/in_place/pretrained.py": (
        "tests/artifact/test_saved_pretrained.py",
        "tests/artifact/test_in_place.py",
    ),
    "repl_fx/export/verifying.py": ("tests/export/test_verifying.py", "tests/export/test_weights.py"),
}

# Loaded before the first fork. The package itself is not: each fork imports it with its mutant.
PRELOADED = (
    "torch",
    "torch.export",
    "torch._dynamo",
    "networkx",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnx_ir",
)
SAME_VALUE = tuple(f"ReplaceComparisonOperator_{pair}" for pair in ("Is_Eq", "Eq_Is", "IsNot_NotEq", "NotEq_IsNot"))


@dataclass(frozen=True)
class Mutant:
    """One change of one place.

    Attributes:
        module: the file, from the root of the project.
        operator, occurrence: what cosmic-ray calls the change, and the how manieth of its places in the file.
        line, column: the place.
        words: the line itself.
    """

    module: str
    operator: str
    occurrence: int
    line: int
    column: int
    words: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}:{self.column} {self.operator.removeprefix('core/')}"


def mirrored_tests(module: str) -> tuple[str, ...]:
    """The test files of a module."""
    path = Path(module.removeprefix("repl_fx/"))
    own, others = Path("tests", path.parent, f"test_{path.name}"), TESTS.get(module, ())
    return tuple(dict.fromkeys((*([str(own)] if not others or (ROOT / own).exists() else ()), *others)))


def mutants_of(module: str, source: str) -> Iterator[Mutant]:
    """All mutants of a file that the rules leave."""
    # Before cosmic-ray, whose own imports of it are circular.
    importlib.import_module("parso")
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    tree = get_ast(source)
    excluded = list(_excluded(ast.parse(source)))
    lines = source.splitlines()
    for name in sorted(plugins.operator_names()):
        kind = plugins.get_operator(name)
        if kind.arguments() or name.endswith(SAME_VALUE):
            continue
        operator = kind()
        places = (place for node in ast_nodes(tree) for place in operator.mutation_positions(node))
        for occurrence, (start, end) in enumerate(places):
            if not any(first <= start and end <= last for first, last in excluded):
                yield Mutant(module, name, occurrence, start[0], start[1], lines[start[0] - 1].strip())


def sample(mutants: Iterable[Mutant], count: int, seed: int) -> list[Mutant]:
    """Mutants of different places, drawn by a seed, in the order of the files.

    Whether a place is drawn depends on the words of its line, not on its number: an edit elsewhere in the project
    changes few of the others.
    """
    places: dict[tuple[str, int, int], list[Mutant]] = {}
    for mutant in mutants:
        places.setdefault((mutant.module, mutant.line, mutant.column), []).append(mutant)
    seen: Counter[tuple[str, str, int]] = Counter()
    ranks = {}
    for place in sorted(places):
        words = (place[0], places[place][0].words, place[2])
        seen[words] += 1
        ranks[place] = hashlib.sha256(f"{seed} {words} {seen[words]}".encode()).digest()
    drawn = sorted(places, key=ranks.__getitem__)[:count]
    return [random.Random(ranks[place]).choice(places[place]) for place in sorted(drawn)]


def mutated(source: str, mutant: Mutant) -> str:
    """The code with the change."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    code: str | None = mutate_code(source, plugins.get_operator(mutant.operator)(), mutant.occurrence)
    assert code is not None, f"{mutant} is no place of its file"
    return code


def _excluded(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where mutants are not sampled: see the rules above."""
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr)):
            parts.append(node)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            parts += node.decorator_list
            if isinstance(node, ast.FunctionDef):
                parts.append(node.returns)
        elif isinstance(node, ast.arg):
            parts.append(node.annotation)
        elif isinstance(node, ast.AnnAssign):
            parts += [node.annotation, node.value if ast.unparse(node.annotation) == "TypeAlias" else None]
        elif isinstance(node, ast.keyword) and node.arg == "strict":
            parts.append(node.value)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            parts.append(node)
        for part in parts:
            if part is not None:
                # A decorator begins with its sign, which is not part of the expression.
                sign = 1 if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and part in node.decorator_list else 0
                first = (part.lineno, part.col_offset - sign)  # type: ignore[attr-defined]
                yield first, (part.end_lineno + sign, part.end_col_offset)  # type: ignore[attr-defined]


# --- judging --------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """Tests that run in a process of their own, on a tree of their own."""

    process: int
    tree: Path
    mutant: Mutant
    key: str
    diff: str
    begun: float
    limit: float


def copy_tree(to: Path) -> None:
    """Copy what git knows or would take; a link stays one."""
    shutil.rmtree(to, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in listed.splitlines():
        source, target = ROOT / name, to / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


class _Covering:
    """A plugin of pytest that keeps what lines of the mutated modules each test runs, and its seconds.

    What a fixture of more than one test runs, and what an import does, belongs to all tests.
    """

    def __init__(self, tree: Path, to: Path) -> None:
        import coverage

        self.tree, self.to = tree.resolve(), to
        include = [str(self.tree / glob.replace("repl_fx/passes", "passes")) for glob in MUTATED]
        self.coverage = coverage.Coverage(data_file=None, config_file=False, include=include)
        self.coverage.start()
        self.seconds: dict[str, float] = {}
        self.test = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.test = item.nodeid
        self.coverage.switch_context(self.test)
        begun = time.monotonic()
        result = yield
        self.seconds[self.test] = time.monotonic() - begun
        self.coverage.switch_context("")
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
        shared = fixturedef.scope != "function"
        if shared:
            self.coverage.switch_context("")
        result = yield
        if shared:
            self.coverage.switch_context(self.test)
        return result

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        data = self.coverage.get_data()
        lines = {
            str(Path(name).relative_to(self.tree)): data.contexts_by_lineno(name) for name in data.measured_files()
        }
        self.to.write_text(json.dumps({"seconds": self.seconds, "lines": lines}))


def start(tree: Path, tests: Sequence[str], log: Path, *, covering: Path | None = None) -> int:
    """Run tests in a fork of this process; its number.

    Args:
        tree: a copy of the project.
        tests: files, or single tests.
        log: where the output of pytest goes.
        covering: where what each test runs is written; where None, nothing is.
    """
    process = os.fork()
    if process:
        return process
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(tree)
    # First of all places, also before where the package is installed, and for processes that a test starts.
    sys.path[:] = [str(tree), *(p for p in sys.path if p and Path(p).resolve() != ROOT)]
    for name in [n for n in sys.modules if n.split(".")[0] in ("benchmarks", "tests", "repl_fx")]:
        del sys.modules[name]
    os.environ["PYTHONPATH"] = str(tree)
    # A file that was mutated may have the size and the time of another mutant of it.
    sys.dont_write_bytecode = covering is None
    code = 1
    try:
        plugins = [_Covering(tree, covering)] if covering is not None else []
        options = ["-x", "-q", "--tb=short", "-m", "not timed", "-p", "no:cacheprovider", "-p", "no:xdist"]
        code = int(pytest.main([*options, *tests], plugins))
    finally:
        sys.stdout.flush()
        os._exit(code)


def judge(
    chosen: Sequence[Mutant], out: Path, *, workers: int, again: bool, limit: float | None
) -> dict[str, dict[str, object]]:
    """Judge each mutant; judgements by key, written as they come.

    Args:
        chosen: in the order in which they are judged.
        out: where copies of the tree and judgements go.
        workers: mutants at a time.
        again: whether survivors of an earlier run are judged once more.
        limit: seconds for a mutant; where None, from a run of its tests without it.

    Raises:
        SystemExit: the tests of a module fail without a mutant.
    """
    out.mkdir(parents=True, exist_ok=True)
    ledger = out / "judged.jsonl"
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    known = {entry["key"]: entry for entry in map(json.loads, lines)}
    trees = [out / f"tree{i}" for i in range(workers)]
    for tree in trees:
        copy_tree(tree)
    sources = {module: (ROOT / module).read_text() for module in {m.module for m in chosen}}
    judged: dict[str, dict[str, object]] = {}
    waiting = []
    for mutant in chosen:
        key = _key(mutant, sources[mutant.module])
        if key in known and not (again and known[key]["outcome"] == "survived"):
            judged[key] = known[key]
        else:
            waiting.append((mutant, key))
    files = sorted({test for mutant, _ in waiting for test in mirrored_tests(mutant.module)})
    covered = _covered(files, trees, out)
    running: list[_Run] = []
    free = list(trees)
    while waiting or running:
        while waiting and free:
            mutant, key = waiting.pop(0)
            tree = free.pop()
            source = sources[mutant.module]
            code = mutated(source, mutant)
            _put(tree / mutant.module, code)
            tests, seconds = _tests_of(mutant, source, covered)
            process = start(tree, tests, tree.with_suffix(".log"))
            most = limit or max(60.0, 5 * workers * seconds)
            running.append(_Run(process, tree, mutant, key, _diff(source, code), time.monotonic(), most))
        time.sleep(0.05)
        for run in list(running):
            outcome = _outcome(run)
            if outcome is None:
                continue
            running.remove(run)
            free.append(run.tree)
            _put(run.tree / run.mutant.module, sources[run.mutant.module])
            seconds = round(time.monotonic() - run.begun, 1)
            entry = {"key": run.key, **asdict(run.mutant), "outcome": outcome, "seconds": seconds, "diff": run.diff}
            judged[run.key] = entry
            with ledger.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            print(f"{outcome:9} {seconds:6.1f} s  {run.mutant}", flush=True)
    return judged


def _judged_before(chosen: Sequence[Mutant], out: Path) -> list[dict[str, object]]:
    """The judgements that still hold of an earlier run."""
    ledger = out / "judged.jsonl"
    known = {e["key"]: e for e in map(json.loads, ledger.read_text().splitlines())} if ledger.exists() else {}
    keys = (_key(mutant, (ROOT / mutant.module).read_text()) for mutant in chosen)
    return [known[key] for key in keys if key in known]


def _covered(files: Sequence[str], trees: Sequence[Path], out: Path) -> dict[str, dict[str, Any]]:
    """What the tests of each file run, and their seconds; kept for a second run on the same code."""
    modules = [str(path.relative_to(ROOT)) for glob in MUTATED for path in sorted(ROOT.glob(glob))]
    kept = {}
    for file in files:
        # Of the modules that it judges; others move none of their lines.
        code = hashlib.sha256((ROOT / file).read_bytes())
        for module in modules:
            if file in mirrored_tests(module):
                code.update((ROOT / module).read_bytes())
        kept[file] = out / f"{code.hexdigest()[:16]}.json"
    waiting = [file for file in files if not kept[file].exists()]
    running: dict[int, tuple[str, Path]] = {}
    free = list(trees)
    while waiting or running:
        while waiting and free:
            file, tree = waiting.pop(), free.pop()
            running[start(tree, [file], tree.with_suffix(".log"), covering=kept[file].with_suffix(".part"))] = (
                file,
                tree,
            )
        process, status = os.wait()
        file, tree = running.pop(process)
        free.append(tree)
        if status:
            print(f"error: {file} fails without a mutant; see {tree.with_suffix('.log')}", file=sys.stderr)
            raise SystemExit(2)
        kept[file].with_suffix(".part").rename(kept[file])
    return {file: json.loads(kept[file].read_text()) for file in files}


def _tests_of(mutant: Mutant, source: str, covered: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], float]:
    """The tests that judge a mutant, the quickest first, and the seconds that they take without it."""
    lines = set(map(str, statement_around(source, mutant.line)))
    seconds: dict[str, float] = {}
    for file in mirrored_tests(mutant.module):
        seconds |= covered[file]["seconds"]
    running: set[str] = set()
    for file in mirrored_tests(mutant.module):
        found = covered[file]["lines"].get(mutant.module, {})
        running.update(test for line in lines & found.keys() for test in found[line])
    chosen = sorted(running if running and "" not in running else seconds, key=lambda test: seconds[test])
    return chosen, sum(seconds[test] for test in chosen)


def statement_around(source: str, line: int) -> range:
    """The lines of the smallest statement around a line; of a compound one those up to its body."""
    best = range(line, line + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body else node.end_lineno or node.lineno
            span = range(node.lineno, max(end, node.lineno) + 1)
            # The walk comes to the inner statements later.
            best = span if line in span else best
    return best


def _outcome(run: _Run) -> str | None:
    process, status = os.waitpid(run.process, os.WNOHANG)
    if process:
        return "survived" if status == 0 else "killed"
    if time.monotonic() - run.begun < run.limit:
        return None
    os.killpg(run.process, signal.SIGKILL)
    os.waitpid(run.process, 0)
    return "timeout"


def _put(path: Path, code: str) -> None:
    path.write_text(code)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def _key(mutant: Mutant, source: str) -> str:
    """What a judgement depends on: the change, the code and the tests."""
    digest = hashlib.sha256(f"{mutant} {mutant.occurrence}\n{source}".encode())
    for test in mirrored_tests(mutant.module):
        digest.update((ROOT / test).read_bytes())
    return digest.hexdigest()[:16]


def _diff(before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1)
    return "\n".join(list(lines)[2:])


def report(judged: Iterable[dict[str, object]], floor: float) -> tuple[str, bool]:
    """Counts a module, survivors with their change, and whether enough was killed."""
    entries = sorted(judged, key=lambda entry: (str(entry["module"]), str(entry["line"])))
    counts: dict[str, Counter[str]] = {}
    for entry in entries:
        counts.setdefault(str(entry["module"]), Counter())[str(entry["outcome"])] += 1
    total = sum(counts.values(), Counter())
    lines = [f"{'module':40} {'killed':>7} {'timeout':>8} {'survived':>9}"]
    for module, count in [*counts.items(), ("all", total)]:
        lines.append(f"{module:40} {count['killed']:7} {count['timeout']:8} {count['survived']:9}")
    share = 1 - total["survived"] / max(1, sum(total.values()))
    lines.append(f"\n{share:.1%} of {sum(total.values())} mutants killed; {floor:.0%} are wanted\n")
    for entry in entries:
        if entry["outcome"] == "survived":
            lines.append(f"{entry['module']}:{entry['line']} {entry['operator']}\n{entry['diff']}\n")
    return "\n".join(lines), share >= floor


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="size of the sample (300)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    parser.add_argument(
        "--only", action="append", metavar="GLOB", help="draw the sample of the modules that match alone"
    )
    parser.add_argument("--workers", type=int, default=1, help="mutants at a time (1)")
    parser.add_argument("--floor", type=float, default=0.75, help="share that has to be killed (0.75)")
    parser.add_argument("--again", action="store_true", help="judge survivors once more")
    parser.add_argument("--report-only", action="store_true", help="report what has been judged so far")
    parser.add_argument("--limit", type=float, help="seconds a mutant, in place of a run of all tests without mutants")
    parser.add_argument("--list", action="store_true", help="print the sample and end")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants")
    options = parser.parse_args()
    modules = sorted(str(p.relative_to(ROOT)) for glob in MUTATED for p in ROOT.glob(glob) if p.name != "__init__.py")
    lacking = [test for module in modules for test in mirrored_tests(module) if not (ROOT / test).is_file()]
    if lacking:
        parser.error(f"no file {lacking[0]}; add the tests of its module to TESTS in benchmarks/mutants.py")
    if options.only:
        modules = [module for module in modules if any(fnmatchcase(module, glob) for glob in options.only)]
    everything = [mutant for module in modules for mutant in mutants_of(module, (ROOT / module).read_text())]
    chosen = sample(everything, options.count, options.seed)
    if options.list:
        print("\n".join(map(str, chosen)), f"\n{len(chosen)} of {len(everything)} mutants, seed {options.seed}")
        return 0
    if options.report_only:
        print(report(_judged_before(chosen, options.out), options.floor)[0])
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in PRELOADED:
        importlib.import_module(name)
    # In a drawn order, so that a run that is interrupted has judged a fair part of the sample.
    random.Random(options.seed).shuffle(chosen)
    judged = judge(chosen, options.out.resolve(), workers=options.workers, again=options.again, limit=options.limit)
    text, enough = report(judged.values(), options.floor)
    (options.out / "report.txt").write_text(text + "\n")
    print(text)
    return 0 if enough else 1


if __name__ == "__main__":
    raise SystemExit(main())
