"""Documents of a report that no model is needed for."""

from __future__ import annotations

from typing import Any

from repl_fx.reporting.model_graph.document import (
    SCHEMA,
    BlockRow,
    Box,
    Cost,
    Curve,
    Document,
    Graph,
    Group,
    Input,
    Layer,
    Layout,
    MadeBy,
    ModelFacts,
    Node,
    PlanTable,
    RepeatRow,
    Route,
    Totals,
    TrainingFacts,
    Value,
    VariantOutcome,
    Verified,
    View,
    Views,
)
from repl_fx.rewriting.block_reports import Status
from tests.benchmarking.test_results import measured


def document(*, name: str = "blocks", after: bool = True, evidence: bool = True) -> Document:
    """A model of a stem, three blocks, of which the second is replaced, and a head.

    Args:
        name: stands in each name and word of it.
        after: whether it is transformed.
        evidence: whether scores, training, verification and benchmark are known.
    """
    known: dict[str, Any] = _evidence(name) if evidence else {}
    stacked = [(16, 16 + 90 * i) for i in range(3)]
    layout = Layout(
        300,
        290,
        tuple(Box(x, y, 250, 60) for x, y in stacked),
        tuple(Route(i, i + 1, (141, 76 + 90 * i, 141, 106 + 90 * i)) for i in range(2)),
    )
    rows = tuple(
        BlockRow(
            i + 1,
            f"{name}.{i}",
            name,
            "replaced" if i == 1 else "kept" if i == 0 else "refused",
            1000,
            100 if i == 1 else 1000,
            surrogate="slim" if i == 1 else None,
            neighbours=(f"{name}.0", f"{name}.2") if i == 1 else (),
            settings={"ratio": 0.25} if i == 1 else None,
            reason=f"no spine in {name}" if i == 2 else None,
            flops_before=2000,
            flops_after=200 if i == 1 else 2000,
            kept_before=4096,
            kept_after=64 if i == 1 else 4096,
        )
        for i in range(3)
    )
    before = _graph(name, after=False)
    return Document(
        schema=SCHEMA,
        made=MadeBy("1.0", "2.13", "2026-01-01T00:00:00+00:00"),
        model=ModelFacts(
            f"{name}.py", f"Net {name}", "torch.export", (Input("x", "2×8 float32"),), notes=(f"note {name}",)
        ),
        totals=Totals(2, Cost(3100, 6100, 12500), Cost(2200, 4300, 8500) if after else None),
        views=Views(View((before,)), View((_graph(name, after=True),)) if after else None),
        layouts={"stack": layout},
        repeats=(RepeatRow(name, tuple(f"{name}.{i}" for i in range(3)), 3, 3000, "exact"),),
        plan=PlanTable({"seed": 0, "expected": {"params": 0.7}}, rows) if after else None,
        **known,
    )


def _graph(name: str, *, after: bool) -> Graph:
    # All three parts of the top level and all nodes of a block share one layout of three boxes.
    status: tuple[Status, ...] = ("kept", "replaced", "refused")
    groups = [
        Group("", f"Net {name}", "graph", (0, -2, 10), "stack", 11, 3100, 6100, 12500, counterpart=0),
        Group(name, name, "repeat", (-3, -4, -5), "stack", 9, 3000, 6000, parent=0, copies=3, counterpart=1),
    ]
    nodes = [Node("x", 0, "input", 0, 0, 0, 0, 0, 0, None)]
    for i in range(3):
        gone = after and i == 1
        inside = tuple(range(1 + 3 * i, 4 + 3 * i))
        groups.append(
            Group(
                f"{name}.{i}",
                str(i),
                "surrogate" if gone else "block",
                inside,
                "stack",
                3,
                100 if gone else 1000,
                200 if gone else 2000,
                parent=1,
                outputs=(inside[-1],),
                type=f"Block {name}",
                status=status[i],
                surrogate="slim" if status[i] == "replaced" else None,
                counterpart=2 + i,
            )
        )
        nodes += [Node(f"node_{n}", 1, "layer" if n % 2 else "operator", 2 + i, 2, 0, 300, 600, 64, 3) for n in inside]
    nodes.append(Node("output", 4, "output", 0, 4, 1, 0, 0, 0, None))
    words = ("x", f"linear {name}", f"{name}.linear", f"{name}.py:7", "output")
    edges = tuple((i, i + 1) for i in range(10))
    values = (Value("2×8 float32", (2, 8), "float32"), Value(f"a tuple of {name}"))
    return Graph("", f"Net {name}", "torch.export", words, values, tuple(groups), tuple(nodes), edges)


def _evidence(name: str) -> dict[str, Any]:
    score = {"repeat": name, "change": None, "gradient": None, "loss": None, "greedy_rank": None, "greedy_loss": None}
    blocks: list[dict[str, Any]] = [
        {"block": f"{name}.{i}", "influence": 0.1 * i, **score, "reasons": {}} for i in range(3)
    ]
    scores = {"schema": 1, "blocks": blocks, "stretches": [], "samples": 8, "kinds": ["influence"], "loss": None}
    errors: list[float | str] = [0.0, 1e-7, 2e-6, "inf"]
    layers = tuple(Layer(f"node_{i}", f"{name}.{i}", error, 2.0, i < 3) for i, error in enumerate(errors))
    outputs = ({"output": name, "batch": 2, "sizes": "height 9", "max_abs": 2e-6, "scale": 1.0, "passed": True},)
    bench = {**measured().to_json(), "notes": [f"note on {name}"]}
    return {
        "scores": scores,
        "training": TrainingFacts(
            (Curve("loss", ((0, 2.0), (1, 1.0)), name), Curve("loss", ((0, 2.5), (1, 1.5)))),
            {"trained": {"accuracy": 0.9}},
            (
                VariantOutcome("original", 3100, {"accuracy": [0.9, 0.8]}, [100.0], [1.0]),
                VariantOutcome(name, reason=name),
            ),
        ),
        "verify": (Verified("", False, f"differs at {name}", outputs, layers, (f"no output {name}",)),),
        "bench": bench,
    }
