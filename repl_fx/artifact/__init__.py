"""The artifact: a directory that a transform writes and every other command reads.

    manifest.json       schema and versions, how to build the model, example inputs, captured parts and what they were
                        called with, aliases of tied tensors, and a hash of every file, of itself too
    plan.json           which blocks went and what stands in for each
    scores.json         what each block was worth, where the plan was made from scores
    model.safetensors   parameters and buffers of the rewritten model: its `state_dict`; as repl-fx.safetensors where a
                        `from_pretrained` would take the file above, and make the weights of replaced blocks anew
    constants.safetensors   buffers that are not in it: tables that the model's code computes
    source.txt          the text of the source model's graph, by which a model that changed is told
    captured.json       the captured graphs as data, by which a model of the same code need not be traced
    graph.txt           the rewritten graph, to read
    config.json         and generation_config.json of transformers, where `save_pretrained` wrote the artifact
    model.onnx          and model.onnx.data, verify.json: what `repl-fx export` adds
    bench.json          and bench.svg: what `repl-fx bench` adds
    report.html         what `repl-fx report` adds

Nothing is pickled. `load` builds the model from its source, reads the graphs that were captured from it, applies the
plan again, and loads the weights. Where the code, the configuration or the libraries of the model are others now, it is
captured anew: of one that was captured in parts, the parts that the plan rewrites, each on inputs like those it was
called with; the model itself is not run. A model whose structure no longer fits is an error.
"""

from __future__ import annotations

from repl_fx.artifact.changing import changing, require_free
from repl_fx.artifact.model_code import build_original
from repl_fx.artifact.places import BENCH, CHART, PROOF, REPORT
from repl_fx.artifact.provenance import built_like
from repl_fx.artifact.saved_pretrained import save_pretrained
from repl_fx.artifact.store import Artifact, adding, load, load_artifact, save

__all__ = [
    "BENCH",
    "CHART",
    "PROOF",
    "REPORT",
    "Artifact",
    "adding",
    "build_original",
    "built_like",
    "changing",
    "load",
    "load_artifact",
    "require_free",
    "save",
    "save_pretrained",
]
