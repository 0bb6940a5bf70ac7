"""The code blocks of the documentation run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, PageRun, missing_line, shell_commands
from tests.docs.readers_files import ReadersFiles

# Installing, hours, other machines, and the files of other people.
MOST_NOT_RUN = 15


def run_page(page: Path, directory: Path, patches: pytest.MonkeyPatch) -> PageRun:
    directory.mkdir(exist_ok=True)
    patches.chdir(directory)
    run = PageRun(directory, ReadersFiles(directory, patches))
    with run.at_end:
        for block in run.blocks_of(page):
            block.evaluate()
    return run


def _named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_its_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, tmp_path / "page", monkeypatch)


def test_few_blocks_are_not_run() -> None:
    not_run = [line for page in PAGES for line in page.read_text().splitlines() if line.startswith("<!-- not run")]
    assert len(not_run) <= MOST_NOT_RUN, "\n".join(not_run)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```python\n1 / 0\n```", "division by zero"),
        ('```python\nprint(3)\n```\n\n```text title="Output"\n4\n```', "not printed: 4"),
        ("```\nplain\n```", "a block in no language"),
        ("```json\n{\n```", "Expecting property name"),
        ("```sh\nrepl-fx transform nowhere.py\n```", "nowhere.py"),
        ("<!-- not run: long -->\n```sh\nrepl-fx transform net.py --evrey 3\n```", "No such option: --evrey"),
        ("<!-- not run: long -->\n```sh\nrepl-fx transfrom net.py\n```", "no command transfrom"),
        ("<!-- not run: long -->\n```sh\ntorchrun -m repl_fx train net.py --epoch 3\n```", "No such option: --epoch"),
        ("<!-- not run: long -->\n```python\nif:\n```", "invalid syntax"),
        ("<!-- not run: long -->\n```sh\nmake tset\n```", "make knows no {'tset'}"),
        ("<!-- not run: long -->\n```sh\npip install 'repl-fx[trian]'\n```", "no extra {'trian'}"),
        ("<!-- not run: -->\n```sh\nmake test\n```", "needs a reason"),
        ("<!-- smaller: a => b -->\n```sh\nrepl-fx bench net.py\n```", "the block has no 'a' to be replaced"),
        ("<!-- smaller: net.py => no.py -->\n```sh\nrepl-fx bench net.py --round 3\n```", "No such option: --round"),
        ("<!-- smaller: net.py => no.py -->\n```sh\nrepl-fx bench net.py\n```", "no.py"),
    ],
)
def test_what_does_not_work_is_noticed(
    page: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.md").write_text(page + "\n")
    with pytest.raises(Exception, match=message.replace("{", r"\{").replace("[", r"\[")):
        run_page(tmp_path / "page.md", tmp_path, monkeypatch)


def test_a_page_shares_its_files_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.md").write_text(
        "<!-- invisible-code-block: python\nx = 2\n-->\n\n"
        '```python title="say.py"\nimport sys\nprint("said", *sys.argv[1:])\n```\n\n'
        '```sh\npython say.py \\\n    twice  # a comment\n```\n\n```text title="Output"\nsaid …ce\n```\n\n'
        '```python\nprint(x + 1)\n```\n\n```text title="Output"\n3\n```\n'
    )
    run = run_page(tmp_path / "page.md", tmp_path, monkeypatch)
    assert run.written == ["say.py"] and run.commands == 1


def test_commands_are_read_as_a_shell_reads_them() -> None:
    assert shell_commands("A=1 make x \\\n  y # z\n\n# no command\nrepl-fx 'a b'") == [
        ["make", "x", "y"],
        ["repl-fx", "a b"],
    ]


def test_output_is_compared_in_order() -> None:
    assert missing_line("a  1\nb … 3", "a 1 x\nb 2 3") is None
    assert missing_line("b 2\na 1", "a 1\nb 2") == "a 1"
