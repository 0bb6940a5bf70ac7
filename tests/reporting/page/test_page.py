"""The page: one file without markup of others, and nothing that could fetch anything."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from repl_fx.reporting.model_graph.document import Cost, Document, EagerModule, Totals
from repl_fx.reporting.page import render_page
from repl_fx.reporting.page.page import embedded
from tests.reporting.page.samples import document

NASTY = [
    "</script><img src=x onerror=alert(1)>",
    "</style></svg></text><script>alert(1)</script>",
    "\"'><b onclick=alert(1)>{{ 7 * 7 }}{% raw %}${7*7}\\",
    "<!--<script>\u2028\u2029]]>&lt;&amp;",
]


class Structure(HTMLParser):
    """Each element of a page with the names of its attributes, and the text of the document in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.document = ""
        self.texts: list[str] = []
        self._in_document = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, *(name for name, _ in attrs)))
        self._in_document = ("id", "document") in attrs

    def handle_endtag(self, tag: str) -> None:
        """Leave an element."""
        self._in_document = False

    def handle_comment(self, data: str) -> None:
        """Note a comment, of which the page has none."""
        self.elements.append(("comment",))

    def handle_data(self, data: str) -> None:
        """Keep a text."""
        if self._in_document:
            self.document += data
        self.texts.append(data)


def _without_charts(page: str) -> str:
    return re.sub(r"<svg[^>]*class=\"marks\".*?</svg>", "", page, flags=re.DOTALL)


def test_the_page_holds_the_document_and_every_section() -> None:
    sample = document()
    found = Structure(render_page(sample))
    assert msgspec.json.decode(found.document, type=Document) == sample
    headings = " ".join(found.texts)
    for name in ("Picture", "Cost per block", "Plan", "Scores", "Training", "Verification", "Benchmark"):
        assert name in headings
    assert [tag for tag, *_ in found.elements].count("script") == 2


def test_nothing_is_fetched_and_nothing_else_runs() -> None:
    page = render_page(document())
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].replace("&#39;", "'").split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    assert rules["script-src"].startswith("'sha256-") and rules["style-src"].startswith("'sha256-")
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\s\"'<)]+", page)) <= names
    assert not re.search(r"<(?:link(?! rel=\"icon\" href=\"data:,\")|iframe|img|object|base)\b", page)
    # A style attribute would be refused by the policy.
    assert " style=" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", NASTY)
def test_names_with_markup_are_text(name: str) -> None:
    plain, nasty = (render_page(document(name=one)) for one in ("blocks", name))
    assert Structure(_without_charts(nasty)).elements == Structure(_without_charts(plain)).elements
    assert {tag for tag, *_ in Structure(nasty).elements} == {tag for tag, *_ in Structure(plain).elements}
    assert json.loads(Structure(nasty).document)["repeats"][0]["name"] == name


@pytest.mark.slow
@given(st.text(st.characters(codec="utf-8") | st.sampled_from("<>&\"'/\\\u2028-!"), max_size=30))
@settings(max_examples=40)
def test_any_name_is_text(name: str) -> None:
    plain, other = (
        msgspec.structs.replace(document(name=one, after=False, evidence=False), repeats=(), layouts={})
        for one in ("n", name)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("repl_fx.reporting.page.page.draw", lambda _: "")
        shown = Structure(render_page(other))
        assert shown.elements == Structure(render_page(plain)).elements
    assert msgspec.json.decode(shown.document, type=Document) == other


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_embedded_json_is_the_same_json_without_markup(value: object) -> None:
    text = embedded(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


@pytest.mark.slow
def test_cards_have_the_costs_that_are_known() -> None:
    page = render_page(document())
    assert re.findall(r'<h2>(.*)</h2>\n\s*<p><span class="change">(.*)</span><small>(.*) →</small> (.*)</p>', page) == [
        ("Parameters", "-29.0 %", "3.10 k", "2.20 k"),
        ("Forward FLOPs, batch 2", "-29.5 %", "6.10 k", "4.30 k"),
        ("Bytes kept for backward, batch 2", "-32.0 %", "12.2 KiB", "8.30 KiB"),
    ]
    full, share, *_ = re.findall(r'width="([\d.]+)" height="5"', page)
    assert float(full) == 100 and float(share) == pytest.approx(100 * 22 / 31)
    unknown = render_page(msgspec.structs.replace(document(), totals=Totals(2, Cost(10), None)))
    assert unknown.count('<div class="cost">') == 1 and "<p>10</p>" in unknown and 'height="5"' not in unknown


def test_modules_that_stay_eager_are_counted() -> None:
    sample = document(evidence=False)
    eager = msgspec.structs.replace(sample.model, eager=(EagerModule("head", "Head", "a reason"),))
    assert "1 module stays eager" in render_page(msgspec.structs.replace(sample, model=eager))
