"""Code in directories of transformers: what runs with permission, and nothing without."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from repl_fx.errors import SourceError
from repl_fx.sources import load_source
from tests.sources.own_model import AUTO_MAP, LAYERS
from tests.sources.packages import needs
from tests.sources.saved_model import same, write

pytestmark = [*needs("transformers"), pytest.mark.usefixtures("_another_seed")]


@pytest.mark.parametrize("suffix", ["", ":Net", "/config.json", ":AutoModelForCausalLM", ":BertModel"])
def test_code_of_a_directory_does_not_run_unasked(own: Path, suffix: str) -> None:
    with pytest.raises(SourceError, match=r"the model brings code of its own, in .*/net, .* add --trust-remote-code"):
        load_source(f"hf:{own}{suffix}")
    assert not (own.parent / "ran").exists()


@pytest.mark.parametrize("suffix", ["", ":AutoModel", ":Net"])
def test_code_of_a_directory_runs_with_permission(own: Path, suffix: str) -> None:
    source = load_source(f"hf:{own}{suffix}", trust_remote_code=True)
    assert type(source.model).__name__ == "Net" and (own.parent / "ran").exists()
    code = ["configuration_net.py", "layers_net.py", "modeling_net.py"]
    assert [file.name for file in source.files] == ["config.json", code[0], code[2], code[1]]
    assert {file.parent for file in source.files} == {own}
    state = {name: tensor + 1 for name, tensor in source.model.state_dict().items()}
    save_file(state, own / "model.safetensors")
    source = load_source(f"hf:{own}{suffix}", trust_remote_code=True)
    assert source.notes == () and same(source.model.state_dict(), state)
    # No file holds it, and transformers leaves it without values where its weights are loaded.
    assert torch.equal(source.model.get_buffer("blocks.0.factor"), torch.full((8,), 0.5))


def test_changed_code_is_taken_as_it_is_now(own: Path) -> None:
    first = load_source(f"hf:{own}", trust_remote_code=True)
    (own / "layers_net.py").write_text(LAYERS.replace("0.5", "0.2"))
    second = load_source(f"hf:{own}", trust_remote_code=True)
    factors = [s.model.get_buffer("blocks.0.factor")[0].item() for s in (first, second)]
    assert factors == pytest.approx([0.5, 0.2])
    assert first.files != second.files


def test_code_that_changes_between_hash_and_run_is_refused(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import dynamic_module_utils as dynamic

    copy = dynamic.get_cached_module_file

    def change_and_copy(*args: Any, **kwargs: Any) -> Any:
        (own / "configuration_net.py").write_text("raise SystemExit\n")
        return copy(*args, **kwargs)

    monkeypatch.setattr(dynamic, "get_cached_module_file", change_and_copy)
    with pytest.raises(SourceError, match=r"configuration_net.py changed while it was read; try again"):
        load_source(f"hf:{own}", trust_remote_code=True)


@pytest.mark.parametrize(
    "code", ["raise ValueError('no\\nluck')", "raise SystemExit(0)", "(", "import no_such_package"]
)
def test_code_that_fails_is_one_line(own: Path, code: str) -> None:
    (own / "configuration_net.py").write_text(code)
    with pytest.raises(SourceError, match=r"configuration_net\.py could not be run: \w+: ") as error:
        load_source(f"hf:{own}", trust_remote_code=True)
    assert "\n" not in str(error.value)


def test_code_for_another_class_is_named(own: Path) -> None:
    with pytest.raises(SourceError, match="AutoModelForCausalLM has no model for a NetConfig; its code has AutoModel"):
        load_source(f"hf:{own}:AutoModelForCausalLM", trust_remote_code=True)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "someone/net--modeling_net.Net",
            "the code of the model is in another place, someone/net, and nothing is down",
        ),
        ("/etc/modeling_net.Net", "is no class of a file in"),
        ("../net/modeling_net.Net", "is no class of a file in"),
        ("gone.Net", "the code of .* cannot be read: FileNotFoundError"),
        ("layers_net.Block", "layers_net.Block in the auto_map of config.json is no model of transformers"),
        ("modeling_net.Gone", "modeling_net.py could not be run: AttributeError"),
    ],
)
def test_a_reference_to_code_that_leads_nowhere(own: Path, reference: str, message: str) -> None:
    write(own, auto_map={**AUTO_MAP, "AutoModel": reference})
    with pytest.raises(SourceError, match=message) as error:
        load_source(f"hf:{own}", trust_remote_code=True)
    assert "\n" not in str(error.value)


def test_a_model_that_transformers_knows_needs_no_code(own: Path, bert: Path) -> None:
    for file in own.glob("*.py"):
        shutil.copy(file, bert)
    write(bert, auto_map=AUTO_MAP)
    source = load_source(f"hf:{bert}:BertForMaskedLM")
    assert not (own.parent / "ran").exists()
    assert source.notes == (
        f"the code in {bert} is not used, as transformers has such a model; --trust-remote-code "
        "(trust_remote_code=True in Python) takes it",
    )
    assert list(source.files) == [bert / "config.json"]
    write(bert, auto_map={"AutoModelForCausalLM": "modeling_net.Net"})
    assert load_source(f"hf:{bert}:BertForMaskedLM").notes == ()


@pytest.mark.usefixtures("own")
def test_permission_prefers_the_code_to_what_transformers_has(bert: Path) -> None:
    (bert / "own_bert.py").write_text("from transformers import BertModel\n\n\nclass Net(BertModel):\n    pass\n")
    write(bert, auto_map={"AutoModel": "own_bert.Net"})
    found = [load_source(f"hf:{bert}", trust_remote_code=trusted) for trusted in (False, True)]
    assert [type(source.model).__name__ for source in found] == ["BertForMaskedLM", "Net"]
    assert [list(source.files) for source in found] == [
        [bert / "config.json"],
        [bert / "config.json", bert / "own_bert.py"],
    ]
    own = found[1].model.state_dict()
    mine = {name.removeprefix("bert."): tensor for name, tensor in found[0].model.state_dict().items()}
    assert all(torch.equal(mine[name], own[name]) for name in own if "pooler" not in name)
    assert [any("is not used" in note for note in source.notes) for source in found] == [True, False]
