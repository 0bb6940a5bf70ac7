"""Habits of keeping models: copies, files, checkpoints."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from typing import Any

import torch
from torch import nn

import repl_fx
from benchmarks.habits.registry import habit, require
from benchmarks.habits.subject import GPT2, GRAPH, RESNET, SOURCE, T5, VIT, Subject, build, transformed
from benchmarks.habits.training import train


def require_same(subject: Subject, model: nn.Module, like: nn.Module) -> None:
    """Fail where two models have other outputs in evaluation mode."""
    found, wanted = (subject.output(each.eval()) for each in (model, like))
    require(torch.equal(found, wanted), "the outputs differ")


def shift(model: nn.Module) -> nn.Module:
    """Move all weights a bit, so that they are not those that the model was made with."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    return model


@habit("copy.deepcopy", VIT, RESNET, GPT2, T5)
def deep_copy(subject: Subject) -> None:
    """A copy computes the same, and has tensors of its own."""
    model = shift(subject.model())
    copied = copy.deepcopy(model)
    require_same(subject, copied, model)
    before = subject.output(model.eval())
    train(subject, copied.train(), 2)
    require(torch.equal(subject.output(model.eval()), before), "training the copy changes the model")


@habit("pickle", VIT, RESNET, GPT2, T5)
def pickled(subject: Subject) -> None:
    """A pickled model computes the same."""
    model = shift(subject.model())
    again = pickle.loads(pickle.dumps(model))
    require(type(again) is type(model) or subject.form == GRAPH, f"it comes back as a {type(again).__name__}")
    require_same(subject, again, model)
    train(subject, again.train(), 3)


@habit("torch.save of the whole model", VIT, GPT2)
def saved_whole(subject: Subject) -> None:
    """`torch.save(model)` and `torch.load(weights_only=False)`."""
    model, file = shift(subject.model()), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    require_same(subject, torch.load(file, weights_only=False), model)


@habit("state_dict out and in", VIT, RESNET, GPT2, T5)
def state(subject: Subject) -> None:
    """`torch.save(model.state_dict())`, read with `weights_only`, into another model of the kind."""
    model, file, other = shift(subject.model()), io.BytesIO(), subject.model()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    require_same(subject, other, model)


@habit("weights of the source go in", VIT, RESNET, GPT2, T5)
def source_state(subject: Subject) -> None:
    """A checkpoint of the source, by `load_state_dict` or `repl_fx.load_source_state`."""
    source, model = shift(build(subject.network)), subject.model()
    if subject.form == SOURCE:
        model.load_state_dict(source.state_dict())
    else:
        repl_fx.load_source_state(model, source.state_dict())
    theirs, ours = source.state_dict(), model.state_dict()
    shared = theirs.keys() & ours.keys()
    require(len(shared) > 5, "no name of a parameter is that of the source")
    wrong = [name for name in shared if not torch.equal(theirs[name], ours[name])]
    require(not wrong, f"{len(wrong)} weights stay as they were, e.g. {next(iter(wrong), '')}")


@habit("save and load of repl-fx", VIT, RESNET, GPT2, T5, expected={SOURCE: "not for the source model"})
def artifact(subject: Subject) -> None:
    """The artifact, and the form that comes back."""
    model = subject.model() if subject.form == GRAPH else shift(subject.model())
    with tempfile.TemporaryDirectory() as directory:
        # The record of what was done lies with the result, or on the model in place.
        repl_fx.save(transformed(subject.network) if subject.form == GRAPH else model, f"{directory}/net")
        again = repl_fx.load(f"{directory}/net", build(subject.network))
    require(type(again) is type(model) or subject.form == GRAPH, f"it comes back as a {type(again).__name__}")
    require_same(subject, again, model)


@habit("DCP: torch.distributed.checkpoint", VIT, GPT2)
def checkpoint(subject: Subject) -> None:
    """Model and optimizer, by the state-dict helpers of torch, in one process."""
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    def pair() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = subject.model()
        return model, torch.optim.AdamW(model.parameters(), lr=3e-3)

    model, optimizer = pair()
    train(subject, model, 3, optimizer=optimizer)
    with tempfile.TemporaryDirectory() as directory:
        own = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        save(own, checkpoint_id=directory, no_dist=True)
        other, fresh = pair()
        theirs: dict[str, Any] = dict(zip(("model", "optimizer"), get_state_dict(other, fresh), strict=True))
        load(theirs, checkpoint_id=directory, no_dist=True)
    set_state_dict(other, fresh, model_state_dict=theirs["model"], optim_state_dict=theirs["optimizer"])
    require_same(subject, other, model)
    ahead, again = (
        train(subject, model.train(), 3, optimizer=optimizer),
        train(subject, other.train(), 3, optimizer=fresh),
    )
    require(ahead == again, "training goes on otherwise")
