"""Text from a run is text in the document, whatever it tries to be."""

from __future__ import annotations

import io
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st
from midwatch.logbook.document import Figure, Heading, Table, Text, to_html, to_markdown
from rich.console import Console
from rich.markdown import Markdown

HOSTILE = '<script>alert(1)</script>"&\n# heading | cell'


class Tags(HTMLParser):
    """Counts what a browser would see as elements."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def tags_of(html: str) -> Tags:
    parser = Tags()
    parser.feed(html)
    return parser


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_no_text_becomes_an_element(words: str) -> None:
    blocks = [Heading(words), Text(words), Table((words, "b"), [(words, words)])]
    plain = [Heading("x"), Text("x"), Table(("x", "b"), [("x", "x")])]
    assert tags_of(to_html(words, blocks)).tags == tags_of(to_html("x", plain)).tags


def test_html_forbids_itself_everything_from_outside() -> None:
    html = to_html(HOSTILE, [Text(HOSTILE)])
    assert "default-src 'none'" in html
    assert "script" not in tags_of(html).tags


def test_markdown_keeps_its_tables_and_headings() -> None:
    rows = [(HOSTILE, "1"), ("b", "2")]
    text = to_markdown("t", [Text(HOSTILE), Table(("what", "n"), rows, (1,))], "figures")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert table[1] == "|---|---:|"
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# t"]


def test_markdown_shows_the_words_as_they_were() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(Markdown(to_markdown("t", [Text("a_b_c *x* [y](z) `q` 1 < 2")], "figures")))
    assert "a_b_c *x* [y](z) `q` 1 < 2" in console.export_text()


def test_a_figure_is_inside_the_html_and_beside_the_markdown() -> None:
    figure = Figure("loss", "the loss", "<svg><title>t</title></svg>")
    assert "<svg>" in to_html("t", [figure])
    assert "![the loss](figures/loss.svg)" in to_markdown("t", [figure], "figures")
