"""Modules as ONNX files that are compared with the very export they were written from, as the `export` command does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import in_mode

if TYPE_CHECKING:
    from repl_fx.export import Verification


class Exported:
    """A module and its ONNX file.

    `verify_onnx` exports the module again; this is for modules that have not changed since they were exported, and
    says so of one that has.

    Attributes:
        module: what was exported.
        path: the file.
    """

    def __init__(
        self,
        module: nn.Module,
        path: Path,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        opset: int | None = None,
    ) -> None:
        """Export a module to a path, as `export_onnx` does."""
        # Networks that are never exported are used without the packages of export, too.
        from repl_fx.export.onnx_model import as_graph, export_program, write_program

        self.module, self.path = module, path
        self._given = ExampleInputs.of(args, kwargs)
        # In evaluation, as it is verified, so that both have one trace.
        with in_mode(module, False):
            graph = as_graph(module, self._given)
        program = export_program(graph, self._given, opset)
        write_program(program, path)
        self._fresh = program.model
        self._state = self._versions()

    def verify(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        path: Path | None = None,
        **options: Any,
    ) -> Verification:
        """Verify the file, or another in its place, by the inputs it was exported with, or by others.

        The options are those of `verify_onnx`.
        """
        from repl_fx.export.verifying import verify_file

        assert self._versions() == self._state, "the module has changed; use verify_onnx"
        given = self._given if args is None else ExampleInputs.of(args, kwargs)
        return verify_file(self.module, path or self.path, given, **options, fresh=self._fresh)

    def _versions(self) -> list[tuple[str, int, int]]:
        """Which tensors the parameters are, and how often each was written into."""
        return [(name, id(tensor), tensor._version) for name, tensor in self.module.named_parameters()]
