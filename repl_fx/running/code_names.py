"""The names in the code of a function: what it may read outside of itself, and whether it may write there.

    x * TABLE[i]          TABLE is read
    for row in TABLE      its items are handed on, and may be written
    LOG.append(x)         LOG may be written

Names that a function makes as it runs cannot be seen; it may mean any by them.
"""

from __future__ import annotations

import ast
import dis
import inspect
import os
import sys
import sysconfig
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, takewhile
from types import CodeType, FunctionType, ModuleType
from typing import Any

# Libraries whose objects, classes and modules are no part of a model's own state.
_FOREIGN = (
    "torch", "numpy", "logging", "contextlib", "threading", "typing", "abc", "enum", "inspect", "repl_fx", "builtins",
)  # fmt: skip
# Where installed packages and Python's own files are; those of a user or of the system lie in others of such folders.
_INSTALLED = tuple(dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")))
_FOLDERS = tuple(f"{os.sep}{folder}{os.sep}" for folder in ("site-packages", "dist-packages"))
# What code does with the value under a name: it reads it, hands on what is in it, or may write to it.
READ, HANDED_ON, WRITTEN = range(3)

# The steps of a function's code that name something, by what they name.
_STEPS = {
    "globals": ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"),
    "attributes": ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "STORE_ATTR", "DELETE_ATTR", "IMPORT_FROM"),
    "imports": ("IMPORT_NAME",),
    "stored": ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR", "STORE_DEREF"),
}
_KINDS = {step: [kind for kind, steps in _STEPS.items() if step in steps] for step in chain(*_STEPS.values())}
# Ways to an attribute or a global of any name; the first ones mostly have a constant name.
_GIVEN_A_NAME = ("getattr", "hasattr", "setattr", "delattr")
_ANY_ATTRIBUTE = frozenset({"vars", "__dict__", "__setattr__", "__getattribute__", "attrgetter"})
_ANY_GLOBAL = frozenset({"globals", "eval", "exec", "import_module", "__import__"})

# Methods and functions whose result holds nothing of a container, its items, or the container itself.
_TELL = {
    ".shape", ".dtype", ".ndim", ".size", ".nbytes", ".index", ".count", ".min", ".max", ".mean", ".sum", ".std",
    ".any", ".all", ".item", ".tolist", "len", "float", "int", "bool", "str", "isinstance", "torch.tensor", "np.interp",
    "np.searchsorted", "np.take",
}  # fmt: skip
_HAND_ON = {
    ".get", ".keys", ".values", ".items", ".copy", "list", "tuple", "set", "dict", "enumerate", "zip", "sorted",
    "reversed", "sum",
}  # fmt: skip
_SHARE = {".astype", ".reshape", ".to", ".T", "torch.from_numpy", "torch.as_tensor", "np.asarray"}


@dataclass(frozen=True)
class Names:
    """The names in the code of a function, and of those that it defines.

    Attributes:
        globals: of its file.
        attributes: of whatever it has at hand.
        imports: files that it imports.
        stored: names of any kind that it binds anew or deletes.
        every: all of these, and those of its closure.
        any_global, any_attribute: it makes names of that kind as it runs, and may mean any.
    """

    globals: frozenset[str]
    attributes: frozenset[str]
    imports: frozenset[str]
    stored: frozenset[str]
    every: frozenset[str]
    any_global: bool
    any_attribute: bool


@lru_cache(maxsize=65536)
def names_in(code: CodeType) -> Names:
    """The names in some code."""
    found: dict[str, set[str]] = {kind: set() for kind in _STEPS}
    computed = False
    for inner in codes_in(code):
        steps = list(dis.get_instructions(inner))
        for number, step in enumerate(steps):
            kinds = _KINDS.get(step.opname, ())
            for kind in kinds:
                found[kind].add(step.argval)
            if "globals" in kinds and step.argval in _GIVEN_A_NAME:
                name = _given_name(steps[number + 1 :])
                computed = computed or name is None
                found["attributes"].add(name or "")
                if step.argval in ("setattr", "delattr"):
                    found["stored"].add(name or "")
    every = found["globals"] | found["attributes"] | set(code.co_freevars)
    return Names(
        **{kind: frozenset(names) for kind, names in found.items()},
        every=frozenset(every),
        any_global=bool(every & _ANY_GLOBAL) or ("sys" in found["globals"] and "modules" in found["attributes"]),
        any_attribute=computed or bool(every & _ANY_ATTRIBUTE),
    )


def _given_name(steps: Sequence[dis.Instruction]) -> str | None:
    """The constant that a call takes as its second argument, where the first is an object or an attribute of one."""
    loads = 0
    for number, step in enumerate(steps):
        # From Python 3.13 on, one step loads two variables.
        loads += step.opname.count("LOAD_FAST") or step.opname not in ("LOAD_ATTR", "CACHE")
        if not step.opname.startswith(("LOAD_", "CACHE")):
            return None
        if loads >= 2:
            rest = takewhile(lambda one: "CALL" not in one.opname, steps[number:])
            # The first word of a name that is put together.
            if any(one.opname.startswith(("FORMAT_", "BUILD_STRING", "BINARY_")) for one in rest):
                return None
            return step.argval if isinstance(step.argval, str) and step.opname == "LOAD_CONST" else None
    return None


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of those that it defines."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


def use_of(code: CodeType, name: str) -> int:
    """The use that code makes of the container under a name: `READ`, `HANDED_ON` or `WRITTEN`, said in doubt too."""
    uses = _uses_in(code)
    return WRITTEN if uses is None else uses.get(name, WRITTEN)


@lru_cache(maxsize=65536)
def _uses_in(code: CodeType) -> Mapping[str, int] | None:
    """The uses that code makes of the values under its names; None where its source is not to be had."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):
        return None
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    uses: dict[str, int] = {}
    for node in parents:
        if name := getattr(node, "id", getattr(node, "attr", None)):
            uses[name] = max(uses.get(name, READ), _use(node, parents, frozenset()))
    known = uses.keys() | {name for node in parents if isinstance(node, ast.alias) for name in node.name.split(".")}
    # The file may have been written anew since Python read it.
    return uses if all(set(".".join(inner.co_names).split(".")) <= known for inner in codes_in(code)) else None


def _use(node: ast.AST, parents: Mapping[ast.AST, ast.AST], names: Collection[str]) -> int:
    """The use of the value of a node; `names` are local ones on the way to it."""
    use = WRITTEN
    while True:
        child, node = node, parents[node]
        match node:
            case ast.Subscript(value=value, ctx=ast.Load()) if value is child:
                use = HANDED_ON
                continue
            case ast.AugAssign(target=target) if target is child:
                return use
            case ast.Subscript(value=value) if value is child:
                return use
            case ast.Attribute(attr=attribute, ctx=ast.Load()):
                called = f".{attribute}"
                above = parents[node]
                node = above if isinstance(above, ast.Call) and above.func is node else node
            case ast.Call(func=function) if function is not child:
                called = ast.unparse(function).replace("numpy.", "np.")
            case ast.Assign(targets=[ast.Name(id=name)]) if not any(
                isinstance(n, (ast.Global, ast.Nonlocal)) for n in parents
            ):
                if isinstance(getattr(child, "ctx", None), ast.Store):
                    return READ
                loads = [n for n in parents if isinstance(n, ast.Name) and n.id == name and name not in names]
                return min(use, max((_use(n, parents, {*names, name}) for n in loads), default=READ))
            case ast.For(iter=value) | ast.comprehension(iter=value) if value is child:
                return HANDED_ON
            case (
                ast.Subscript() | ast.BinOp() | ast.UnaryOp() | ast.Compare() | ast.AugAssign() | ast.FormattedValue()
                | ast.Expr() | ast.If() | ast.While() | ast.Assert()
            ):  # fmt: skip
                return READ
            case _:
                return use if isinstance(getattr(child, "ctx", ast.Load()), ast.Load) else READ
        if called in _TELL:
            return READ
        if called in _HAND_ON:
            use = HANDED_ON
        elif called not in _SHARE:
            return use


def is_installed(file: ModuleType) -> bool:
    """Tell whether a file is no part of the user's script: it is from an installed package, or there is none."""
    if getattr(file, "__file__", None) is None or file.__name__.split(".")[0] in _FOREIGN:
        return True
    path = str(file.__file__)
    return path.startswith(_INSTALLED) or any(folder in path for folder in _FOLDERS)


def is_own_code(part: type | FunctionType) -> bool:
    """Tell whether a class or a function is from a file of the user's, not from an installed package."""
    return not is_foreign(part) and is_own_module(part.__module__ or "")


def is_own_module(name: str) -> bool:
    """Tell whether the module of a name is a file of the user's, such as the script that runs."""
    file = sys.modules.get(name)
    return file is None or file.__name__ == "__main__" or not is_installed(file)


def name_of_code(part: Any) -> str:
    """The name of a class or a function, with that of its file where this is an installed one.

    A file of the user's has another module name wherever it lies.
    """
    name = str(getattr(part, "__qualname__", getattr(part, "__name__", part)))
    own = isinstance(part, (type, FunctionType)) and is_own_code(part)
    return name if own else f"{getattr(part, '__module__', None) or ''}.{name}"


def is_foreign(kind: type | FunctionType) -> bool:
    """Tell whether a class or a function is from a library whose state is none of a model's."""
    return (kind.__module__ or "").split(".")[0] in _FOREIGN
