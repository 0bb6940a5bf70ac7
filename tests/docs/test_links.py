"""Links between the documents lead somewhere, on GitHub as on the site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT

DOCUMENTS = (*PAGES, ROOT / "CHANGELOG.md")
_HIDDEN = re.compile(r"^```.*?^```|<!--.*?-->", re.MULTILINE | re.DOTALL)


def prose(document: Path) -> str:
    """A document without its code blocks and comments."""
    return _HIDDEN.sub("", document.read_text())


def anchors(document: Path) -> set[str]:
    """The names of its headings in links."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_relative_links_exist(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists() and target.is_relative_to(ROOT), link
        # Those of commands.md come from the help of each command, as the site shows it.
        if anchor and target.name != "commands.md":
            assert anchor in anchors(target), link


@pytest.mark.parametrize("document", PAGES, ids=lambda document: str(document.relative_to(ROOT)))
def test_code_is_fenced(document: Path) -> None:
    assert re.search(r"\n\n {4}(?! *[-*])\S", prose(document)) is None
