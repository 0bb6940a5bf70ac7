"""The model in place is the source's tree, and computes what the rewritten graph does."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.graph.captured import share_tensors
from tests.nets import ConvBlock, ConvNet, Counts, MlpBlock, RawNet, Row, TokenNet, TransformerBlock, training_step

TOKENS, NARROW, PICTURES = torch.randn(2, 6, 16), torch.randn(2, 6, 8), torch.randn(2, 3, 8, 8)


def _one_by_one(result: repl_fx.TransformResult) -> nn.Module:
    """The rewritten graph with syntheses one by one, as the model in place has them, on the same parameters."""
    (graph,) = result.one_by_one.values()
    graph.recompile()
    return graph


def _step(model: nn.Module, x: Tensor, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """A step, whose gradients have the same names in both forms."""
    out, grads = training_step(model, x, training)
    return out, {n.replace("surrogates.blocks_", "blocks.").replace(".surrogate.", "."): g for n, g in grads.items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("model", "x", "surrogate"),
    [
        (TokenNet(depth=5, dropout=0.1), TOKENS, "bottleneck"),
        (TokenNet(depth=5, dropout=0.1), TOKENS, "reuse"),
        (TokenNet(depth=5, dropout=0.1), TOKENS, "blend"),
        (TokenNet(depth=5, dropout=0.1), TOKENS, "identity"),
        (ConvNet(), PICTURES, "slim"),
        (ConvNet(), PICTURES, "coarse"),
        (ConvNet(), PICTURES, "blend"),
        (ConvNet(plain=True), PICTURES, "blend"),
    ],
)
def test_outputs_and_gradients_are_those_of_the_graph(
    model: nn.Module, x: Tensor, surrogate: str, training: bool
) -> None:
    result = repl_fx.transform(model, (x,), surrogate=surrogate)
    assert not result.in_place.refusals
    for name, parameter in result.graph_module.named_parameters():
        if name.startswith("surrogates."):
            # Away from branches that begin at zero.
            parameter.data += 0.1 * torch.randn_like(parameter)
    assert type(result.model) is type(model)
    out, grads = _step(result.model, x, training)
    expected, theirs = _step(_one_by_one(result), x, training)
    assert torch.equal(out, expected)
    assert grads.keys() == theirs.keys()
    assert all(torch.equal(grads[name], theirs[name]) for name in theirs)
    assert not torch.equal(out, model.train(training)(x))


def test_parameters_are_shared_and_kept_blocks_are_the_sources_own() -> None:
    model = TokenNet(depth=5)
    result = repl_fx.transform(model, (TOKENS,), surrogate="bottleneck")
    rewritten: Any = result.model
    own, source = dict(rewritten.named_parameters()), dict(model.named_parameters())
    graph = dict(result.graph_module.named_parameters())
    assert own["blocks.0.fc1.weight"] is source["blocks.0.fc1.weight"]
    for name, parameter in own.items():
        block, surrogate, inner = name.partition(".surrogate.")
        assert graph[f"surrogates.{block.replace('.', '_')}.{inner}" if surrogate else name] is parameter
    assert [type(block).__name__ for block in rewritten.blocks] == [
        "TransformerBlock",
        "TransformerBlockSurrogate",
        "TransformerBlock",
        "TransformerBlockSurrogate",
        "TransformerBlock",
    ]
    assert all(isinstance(block, TransformerBlock) for block in rewritten.blocks)


@pytest.mark.parametrize("surrogate", ["bottleneck", "reuse", "blend"])
def test_copies_compute_the_same_on_parameters_of_their_own(surrogate: str) -> None:
    model: Any = repl_fx.transform(TokenNet(depth=5), (TOKENS,), surrogate=surrogate).model.eval()
    expected = model(TOKENS)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    for copied in copies:
        assert torch.equal(copied(TOKENS), expected)
        with torch.no_grad():
            copied.blocks[0].fc1.weight.mul_(2)
            copied.blocks[2].attn.qkv.weight.mul_(2)
        assert not torch.equal(copied(TOKENS), expected)
        assert torch.equal(model(TOKENS), expected)


def test_forward_hooks_on_blocks_see_surrogates() -> None:
    model: Any = repl_fx.transform(TokenNet(depth=5), (TOKENS,), surrogate="bottleneck").model
    seen: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, type(model.blocks[0])):
            module.register_forward_hook(lambda *_, path=path: seen.append(path))
    model(TOKENS)
    assert seen == [f"blocks.{i}" for i in range(5)]


@pytest.mark.slow
def test_a_model_in_parts_has_its_parts_in_place() -> None:
    model: Any = Counts(TokenNet(depth=3))
    result = repl_fx.transform(model, (TOKENS,), surrogate="bottleneck")
    assert not result.captured_parts.whole
    assert type(result.model) is Counts
    assert torch.equal(result.model.eval()(TOKENS), result.module.eval()(TOKENS))
    assert result.model.calls == result.module.calls > model.calls


def test_a_block_that_is_no_module_leaves_the_graph() -> None:
    result = repl_fx.transform(RawNet(depth=5), (torch.randn(4, 8),), surrogate="blend")
    assert result.in_place.model is None
    assert [refusal.reason for refusal in result.in_place.refusals] == ["it is no call of a single module"] * 2
    assert result.model is result.module


class _Flagged(MlpBlock):
    """A block with a mask, a flag that says what to return, and arguments by name."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0, *, both: bool = False, **more: Any
    ) -> Any:
        made = super().forward(x if mask is None else x * mask)
        return (made * scale, mask) if both else (made * scale,)


class _FlaggedNet(nn.Module):
    def __init__(self, block: type[nn.Module] = _Flagged, depth: int = 5) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(8) for _ in range(depth))

    def forward(self, x: Tensor, **flags: Any) -> Tensor:
        for block in self.blocks:
            x = block(x, **flags)[0]
        return x


def _flagged(kwargs: Mapping[str, Any], surrogate: str) -> Any:
    return repl_fx.transform(_FlaggedNet(), (NARROW,), kwargs, surrogate=surrogate).model.eval()


class _Mixing(nn.Module):
    """A layer that mixes positions by a map that can be masked."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        scores = self.map(x) @ x.transpose(-2, -1) * scale
        made: Tensor = self.out(torch.softmax(scores if mask is None else scores + mask, -1) @ x)
        return made


class _Attending(MlpBlock):
    """A block that hands a mask on to a layer that goes; what it returns is a flag's affair."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.mixing = _Mixing(width)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0, *, output_attentions: bool = False, **more: Any
    ) -> Any:
        masked = mask if x.ndim == 3 else None
        made = super().forward(x + self.mixing(x, masked, scale=scale))
        return (made, mask) if output_attentions else (made,)


def _attending() -> Any:
    return repl_fx.transform(_FlaggedNet(_Attending), (NARROW,), surrogate="bottleneck").model.eval()


def test_arguments_that_a_surrogate_does_not_read_are_free() -> None:
    model = _attending()
    plain = model.blocks[1](NARROW)[0]
    assert torch.equal(model.blocks[1](NARROW, scale=2.0, more=3)[0], plain)
    assert not torch.equal(model(NARROW, scale=2.0), model(NARROW))


def test_arguments_that_the_blocks_own_code_reads_are_those_of_the_trace() -> None:
    model = _flagged({}, "bottleneck")
    assert torch.equal(model(NARROW), model(NARROW, scale=1.0))
    with pytest.raises(RuntimeError, match=r"blocks.1 was captured with scale = 1.0, and is called with 2.0; capture"):
        model(NARROW, scale=2.0)
    with pytest.raises(RuntimeError, match=r"blocks.1 was captured with mask = None, and is called with a tensor"):
        model(NARROW, mask=torch.ones(2, 6, 1))


def test_a_block_on_blended_weights_takes_what_the_block_took() -> None:
    model, mask = _flagged({}, "blend"), torch.rand(2, 6, 1)
    assert not torch.equal(model(NARROW, mask=mask), model(NARROW))
    assert len(model.blocks[1](NARROW, both=True)) == 2
    assert torch.equal(model.blocks[1](NARROW, scale=2.0)[0], 2 * model.blocks[1](NARROW)[0])


def test_a_structure_that_the_neighbours_return_now_is_refused() -> None:
    model = _attending()
    with pytest.raises(RuntimeError, match=r"blocks.0 returns 2 values now, and returned 1 .* blocks.1 cannot follow"):
        model(NARROW, output_attentions=True)


class _Biased(_Attending):
    """A block that adds what the first of all makes, and hands it on."""

    def forward(self, x: Tensor, bias: Tensor | None = None, *, output_attentions: bool = False) -> Any:  # type: ignore[override]
        bias = x.mean(1, keepdim=True) if bias is None else bias
        made = MlpBlock.forward(self, x + self.mixing(x) * bias)
        return (made, bias, bias) if output_attentions else (made, bias)


class _BiasedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Biased(8) for _ in range(4))

    def forward(self, x: Tensor, *, output_attentions: bool = False) -> Tensor:
        bias = None
        for block in self.blocks:
            x, bias = block(x, bias, output_attentions=output_attentions)[:2]
        return x


def test_a_first_block_that_makes_what_all_share_says_what_is_returned_now() -> None:
    model: Any = repl_fx.transform(_BiasedNet(), (NARROW,), surrogate="identity").model
    with pytest.raises(RuntimeError, match=r"blocks.0 returns 3 values now, and returned 2 .* blocks.1 cannot follow"):
        model(NARROW, output_attentions=True)


_BETWEEN = iter([torch.tanh, torch.sin, torch.sigmoid, F.silu, torch.cos])


class _Mixed(_Mixing):
    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return x + super().forward(x, mask, scale)


class _Halved(MlpBlock):
    """A block of two halves, the first a module inside; no two blocks have the same between them."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.first = _Mixed(width)
        self.between: Any = next(_BETWEEN)

    def forward(self, x: Tensor, *, output_attentions: bool = False) -> Any:
        made = super().forward(self.between(self.first(x)))
        return (made, x) if output_attentions else (made,)


def test_a_block_whose_first_half_is_a_module_inside_says_what_is_returned_now() -> None:
    model: Any = repl_fx.transform(_FlaggedNet(_Halved), (NARROW,), surrogate="identity").model
    with pytest.raises(RuntimeError, match=r"blocks.0 returns 2 values now, and returned 1 .* blocks.1 cannot follow"):
        model(NARROW, output_attentions=True)


class _Adds(MlpBlock):
    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        return super().forward(x if more is None else x + more)


def test_a_tensor_that_a_surrogate_computes_with_has_to_be_there() -> None:
    result = repl_fx.transform(
        Row(*(_Adds(8) for _ in range(3))), (NARROW, torch.randn(2, 6, 8)), surrogate="bottleneck"
    )
    model: Any = result.model.eval()
    with pytest.raises(RuntimeError, match=r"surrogate of blocks.1 computes with more, .* is None now"):
        model(NARROW)
    with pytest.raises(RuntimeError, match=r"captured with x of shape \(any, any, 8\), and is called with \(2, 6, 4\)"):
        model.blocks[1](NARROW[..., :4], NARROW)


class _OfOneBatch(nn.Module):
    """Takes no other batch than it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.place = nn.ModuleList(_Adds(8) for _ in range(3)), nn.Parameter(torch.zeros(2, 6, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.place])[: len(self.place)] + self.place
        for block in self.blocks:
            x = block(x)
        return x


def test_a_batch_that_is_not_full_is_refused_as_a_users_affair() -> None:
    model: Any = repl_fx.transform(_OfOneBatch(), (NARROW,), surrogate="bottleneck").model.eval()
    with pytest.raises(
        repl_fx.ReplFxError, match=r"called with \(1, 6, 8\); give it batches of 2: drop_last=True, or --f"
    ):
        model.blocks[1](NARROW[:1])


class _Handed(MlpBlock):
    def forward(self, x: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        return super().forward(_scaled(x, mask, **kwargs))


def _scaled(x: Tensor, mask: Tensor | None = None, scale: float | None = None, **kwargs: Any) -> Tensor:
    return x if scale is None else x * scale


class _HandsAllOn(nn.Module):
    """Hands what it is given on to all blocks, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Handed(8) for _ in range(3))

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        for block in self.blocks:
            x = block(x, **kwargs)
        return x


def test_keywords_that_no_code_of_the_block_reads_change_nothing() -> None:
    model: Any = repl_fx.transform(_HandsAllOn(), (NARROW,), surrogate="bottleneck").model.eval()
    plain = model(NARROW)
    assert torch.equal(model(NARROW, num_items_in_batch=torch.tensor(3), note="x"), plain)
    assert torch.equal(model(NARROW, mask=torch.ones(2, 6)), plain)
    with pytest.raises(repl_fx.ReplFxError, match=r"was captured with kwargs.scale = None, and is called with 2.0"):
        model(NARROW, scale=2.0)


class _MaskedConv(ConvBlock):
    """A block of pictures that may be masked."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x if mask is None else x * mask)


def test_a_surrogate_that_mixes_positions_refuses_a_mask_that_it_never_saw() -> None:
    x = torch.randn(2, 8, 8, 8)
    model: Any = repl_fx.transform(Row(*(_MaskedConv(8) for _ in range(3))), (x,), surrogate="coarse").model.eval()
    model(x)
    with pytest.raises(RuntimeError, match=r"blocks.1 was captured with mask = None, and is called with a tensor"):
        model(x, torch.ones(2, 1, 8, 8))


def test_attributes_of_the_block_are_there_without_its_modules() -> None:
    class Named(MlpBlock):
        kind = "mlp"

        def __init__(self, index: int) -> None:
            super().__init__(8)
            self.index, self.layers = index, [self.fc1, self.fc2]

    model = nn.Sequential(*(Named(i) for i in range(3)))
    rewritten: Any = repl_fx.transform(model, (NARROW,), surrogate="bottleneck").model
    block = rewritten[1]
    assert (block.kind, block.index) == ("mlp", 1)
    assert not hasattr(block, "layers")
    assert not hasattr(block, "fc1")
    assert F.mse_loss(block(NARROW), NARROW) >= 0


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_copy_that_shares_tensors_runs_its_own_modules(checkpointed: bool) -> None:
    result = repl_fx.transform(TokenNet(depth=5), (TOKENS,), surrogate="reuse", checkpoint_blocks=checkpointed)
    model: Any = result.model.eval()
    copied: Any = share_tensors(model)
    for module in copied.modules():
        module._parameters.update(
            {n: p if p is None else nn.Parameter(2 * p.detach()) for n, p in module._parameters.items()}
        )
    alone = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.mul_(2)
    assert torch.equal(copied(TOKENS), alone(TOKENS))
    assert torch.equal(model(TOKENS), result.graph_module.eval()(TOKENS))
    copied.train()
    assert not any(module.training for module in model.modules())


def test_a_block_that_runs_all_its_children_does_not_run_the_surrogates_own() -> None:
    x = torch.randn(2, 8)
    blocks = (nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
    result = repl_fx.transform(nn.Sequential(*blocks), (x,), surrogate="blend")
    assert torch.equal(result.model.eval()(x), result.graph_module.eval()(x))


@pytest.mark.slow
def test_blocks_of_a_similar_repeat_have_their_places() -> None:
    models = pytest.importorskip("torchvision.models")
    x = torch.randn(2, 3, 32, 32)
    result = repl_fx.transform(models.resnet18(num_classes=3), (x,), blocks=["layer3.1#similar_1"])
    # Blocks of an exact repeat of two, whose ends stay, have the plain names.
    assert [replacement.block for replacement in result.plan.replacements] == ["layer3.1#similar_1"]
    assert not result.in_place.refusals
    assert torch.equal(result.model.eval()(x), result.graph_module.eval()(x))
    assert not torch.equal(result.model(x), result.captured.eval()(x))


class _WritesItself(nn.Linear):
    """A layer that writes its weight into a state_dict by itself (`Linear` of torch_geometric)."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight if keep_vars else self.weight.detach()
        destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        assert state_dict[f"{prefix}weight"].shape == self.weight.shape
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, bias {self.bias.dtype}"


class _WritingBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = _WritesItself(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x).relu()  # type: ignore[no-any-return]


def test_a_layer_that_writes_or_shows_its_own_weights_has_none_of_those_that_went(tmp_path: Path) -> None:
    source, x = nn.Sequential(*(_WritingBlock() for _ in range(5))), torch.randn(2, 8)
    model = repl_fx.transform(source, (x,), surrogate="blend").model
    names = {name for name, _ in model.named_parameters()}
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        state = one.state_dict(keep_vars=True)
        assert state.keys() == names
        assert str(one).count("(8, 8), bias torch.float32") == 3
        one.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in state.items()})
        assert not any(parameter.any() for parameter in one.parameters())
    repl_fx.save(model, tmp_path / "saved")
    loaded = repl_fx.load(tmp_path / "saved", model=nn.Sequential(*(_WritingBlock() for _ in range(5))))
    assert torch.equal(loaded(x), model(x))


class _Precise(nn.Sequential):
    """A model of a library in a model, which asks its weights for its precision and has a method to save it."""

    @property
    def dtype(self) -> torch.dtype:
        return next(weight.dtype for weight in self.parameters())

    def save_pretrained(self) -> None: ...


def test_a_model_whose_weights_all_went_is_not_asked_for_their_precision() -> None:
    source = nn.Sequential(*(_Precise(MlpBlock(16)) for _ in range(5)))
    result = repl_fx.transform(source, (TOKENS,), surrogate="identity")
    assert not result.in_place.refusals
    assert torch.equal(result.model(TOKENS), result.graph_module(TOKENS))
