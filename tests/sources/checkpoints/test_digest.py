"""The digest of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from repl_fx.sources.checkpoints.digest import digest_of
from tests.nets import ConvNet


def test_equal_weights_have_one_digest_and_others_another() -> None:
    torch.manual_seed(0)
    model = ConvNet()
    found = digest_of(model)
    assert len(found) == 64 and digest_of(copy.deepcopy(model)) == found
    for name, value in model.state_dict().items():
        changed = copy.deepcopy(model)
        # One more, in the smallest step of a float or by one of an integer.
        changed.state_dict()[name].view(-1)[:1].add_(1)
        assert digest_of(changed) != found, (name, value.shape)


def test_names_types_and_shapes_count() -> None:
    def of(**tensors: torch.Tensor) -> str:
        model = nn.Module()
        for name, tensor in tensors.items():
            model.register_buffer(name, tensor)
        return digest_of(model)

    zeros = torch.zeros(2, 3)
    others = [of(b=zeros), of(a=zeros.t()), of(a=zeros.int()), of(a=zeros.bfloat16()), of(a=zeros, b=torch.zeros(()))]
    assert len({of(a=zeros), *others}) == 6
    # Views count by their values, wherever they lie.
    assert of(a=torch.arange(6.0).reshape(2, 3).t()) == of(a=torch.arange(6.0).reshape(2, 3).t().contiguous())


def test_weights_without_values_have_none() -> None:
    assert digest_of(nn.Linear(2, 2, device="meta")) == ""
