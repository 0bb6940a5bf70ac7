"""HTML for notebooks: it escapes, and has no colours of its own."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from repl_fx.display.columns import Table, words
from repl_fx.display.html import html_of

MARKUP = '<img src=x onerror="alert(1)">&amp;[red]'


class _Read(HTMLParser):
    """The elements and the text of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.elements.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_are_text() -> None:
    table = Table("Names", words("name"), [(MARKUP,)])
    made = _Read(html_of(MARKUP, table))
    assert made.elements == {"pre", "span"}
    assert made.text.count(MARKUP) == 2
    lines = made.text.splitlines()
    assert lines[0] == MARKUP and lines[1] == "" and lines[2].strip() == "Names"


def test_colours_are_those_of_the_notebook() -> None:
    made = html_of(Table("Title", words("name"), ()))
    assert "color: inherit" in made and "font-weight: bold" in made
    assert not re.search(r"#[0-9a-fA-F]{6}|rgb|<style|<script", made)
