"""Values that the shell completes: models, artifacts, surrogates, data and tasks.

A shell waits for each answer, so that no library is imported: the models of timm, torchvision and transformers are read
from their files, and the other names stand here, where a test compares them with the registries.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from pathlib import Path

from repl_fx.config import offered

SURROGATES = ("auto", "blend", "bottleneck", "coarse", "identity", "linear", "narrow", "reuse", "slim", "trained")
DATA = ("digits", "cifar10", "svhn", "stl10", "fashion-mnist", "folder:", "masks:", "coco:", "npz:", "text:", "hf:")
TASKS = ("classification", "language-modelling", "segmentation", "detection")
# Where a library has the names of its models: its files, and the pattern of a name in them.
_ZOOS = {
    "timm": ("timm", "models/**/*.py", r"^@register_model\b.*\ndef (\w+)"),
    "torchvision": (
        "torchvision",
        "models/**/*.py",
        r"^@register_model\((?:name=\"(\w+)\")?\)\n(?:(?!def ).*\n)*?def (\w+)",
    ),
    "hf": ("transformers", "models/auto/*.py", r"\(\"([\w.-]+)\", \"\w+Config\"\)"),
}
_WORD = re.compile(r"""(?:\\.|"[^"]*"?|'[^']*'?|\S)+""")
_ASKED, _BEFORE = "_REPL_FX_COMPLETE", "_REPL_FX_BEFORE"


def prepare_completion(environment: MutableMapping[str, str]) -> bool:
    """Tell whether a shell asks for completions.

    bash breaks words at `:` and `=`, hands the signs on as words, and completes behind the last: `timm : vi` becomes
    one word again, of which what stands before `vi` is kept aside, and the `=` of `--data = dig` goes.
    """
    asked = environment.get(_ASKED, "")
    if asked == "complete_bash":
        # What stands behind the cursor changes no answer.
        given, current = _WORD.findall(environment["COMP_WORDS"]), int(environment["COMP_CWORD"])
        words = _whole(given[: current + 1])
        ends = current < len(given) and given[current] != "="
        before, colon, rest = (words.pop() if ends else "").rpartition(":")
        environment["COMP_WORDS"] = " ".join([*words, rest])
        environment["COMP_CWORD"] = str(len(words))
        environment[_BEFORE] = before + colon
    return bool(asked)


def complete_model(incomplete: str) -> list[str]:
    """Models: files, `timm:NAME` and the like."""
    return _beginning(incomplete, _models)


def complete_model_or_artifact(incomplete: str) -> list[str]:
    """Models, and directories that hold an artifact."""
    return _beginning(incomplete, lambda text: (*_models(text), *_artifacts(text)))


def complete_artifact(incomplete: str) -> list[str]:
    """Directories that hold an artifact."""
    return _beginning(incomplete, _artifacts)


def complete_plan(incomplete: str) -> list[str]:
    """Directories that hold an artifact, and files of plans."""
    return _beginning(incomplete, lambda text: _paths(text, lambda path: _is_artifact(path) or path.suffix == ".json"))


def complete_surrogate(incomplete: str) -> list[str]:
    """Keys of surrogates, those of installed packages too."""
    return [key for key in (*SURROGATES, *offered("repl_fx.surrogates")) if key.startswith(incomplete)]


def complete_data(incomplete: str) -> list[str]:
    """Data sets: names, kinds of paths with the paths, and files of functions."""
    return _beginning(incomplete, _data)


def complete_task(incomplete: str) -> list[str]:
    """Names of tasks, and files of a LightningModule."""
    return _beginning(incomplete, lambda text: (*TASKS, *_paths(text, _is_python)))


# By the name of the setting.
OF_SETTINGS = {"surrogate": complete_surrogate, "data": complete_data, "task": complete_task}


def _models(incomplete: str) -> Iterator[str]:
    kind, colon, name = incomplete.partition(":")
    if colon:
        yield from (f"{kind}:{found}" for found in _zoo(kind) if found.startswith(name))
        return
    kinds = [one for one in (*_ZOOS, *offered("repl_fx.sources")) if one.startswith(incomplete)]
    # Shells put a blank behind the only answer, though a name is still to come.
    yield from (f"{one}:{name}" for one in kinds for name in (_zoo(one) if len(kinds) == 1 and incomplete else ("",)))
    yield from _paths(incomplete, _is_python)


def _data(incomplete: str) -> Iterator[str]:
    found = [*(name for name in DATA if name.startswith(incomplete)), *_paths(incomplete, _is_python)]
    kind, colon, path = (found[0] if len(found) == 1 else incomplete).partition(":")
    inside = [kind + colon + one for one in _paths(path, Path.is_file)] if colon and kind + colon in DATA else []
    yield from inside or found


def _artifacts(incomplete: str) -> Iterator[str]:
    yield from _paths(incomplete, _is_artifact)


def _zoo(kind: str) -> list[str]:
    """The names of the models of a kind; none where its library is not installed."""
    package, files, pattern = _ZOOS.get(kind, ("", "", ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or not spec.submodule_search_locations:
        return []
    root = Path(spec.submodule_search_locations[0])
    found = (match for file in root.glob(files) for match in re.findall(pattern, file.read_text(), re.MULTILINE))
    return sorted({match if isinstance(match, str) else match[0] or match[1] for match in found})


def _paths(incomplete: str, wanted: Callable[[Path], bool]) -> list[str]:
    """Paths of what is wanted, and of directories that may hold some; the only directory is opened."""
    parent, name = os.path.split(incomplete)
    folder = Path(os.path.expanduser(parent) or ".")
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.name.startswith(name))
    except OSError:
        return []
    shown = [entry for entry in entries if name.startswith(".") or not entry.name.startswith(".")]
    found = [os.path.join(parent, entry.name) for entry in shown if wanted(entry)]
    folders = [os.path.join(parent, entry.name, "") for entry in shown if entry.is_dir() and not wanted(entry)]
    if not found and len(folders) == 1:
        return _paths(folders[0], wanted) or folders
    return found + folders


def _is_artifact(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def _is_python(path: Path) -> bool:
    return path.suffix == ".py" and path.is_file()


def _beginning(incomplete: str, values: Callable[[str], Iterable[str]]) -> list[str]:
    """Those values that begin with what is typed, each once; without the part that the shell keeps."""
    kept = os.environ.get(_BEFORE, "")
    found = (value for value in values(kept + incomplete) if value.startswith(kept + incomplete))
    return [value.removeprefix(kept) for value in dict.fromkeys(found)]


def _whole(words: list[str]) -> list[str]:
    """Words with those that bash has broken at colons put together, without the `=` behind the names of options."""
    whole: list[str] = []
    for word in words:
        if whole and (word[0] == ":" or (whole[-1][-1] == ":" and len(whole) > 1)):
            whole[-1] += word
        elif word != "=":
            whole.append(word)
    return whole
