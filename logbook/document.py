"""A document of headings, text, tables and figures, as one HTML file or as Markdown.

Whatever text comes from a run (titles, logs, names) is data: it is escaped here and nowhere else.
The HTML needs nothing from anywhere: style and figures are inside, and it forbids itself the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import msgspec

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
  color: #24292f; background: #fff; max-width: 940px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; border-bottom: 1px solid #d0d7de; padding-bottom: .3rem; }
h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #eaeef2; }
table { border-collapse: collapse; font-size: .86rem; margin: .6rem 0; }
.wide { overflow-x: auto; }
th, td { padding: .22rem .6rem; border-bottom: 1px solid #eaeef2; text-align: left;
  vertical-align: top; }
th { background: #f6f8fa; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: .8rem 0; } figure > svg { max-width: 100%; height: auto; }
p.quiet { color: #57606a; font-size: .86rem; }
@media print { body { max-width: none; } h2 { break-after: avoid; } }
@media print { figure { break-inside: avoid; } }
"""


class Heading(msgspec.Struct, frozen=True):
    text: str


class Text(msgspec.Struct, frozen=True):
    """A paragraph. is_quiet: an explanation, which may be passed over."""

    text: str
    is_quiet: bool = False


class Table(msgspec.Struct, frozen=True):
    """Rows of cells under heads; numbers stand to the right: the columns in numeric."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[int] = ()


class Figure(msgspec.Struct, frozen=True):
    """An SVG of our own making. name: of its file beside the Markdown."""

    name: str
    alt: str
    svg: str


Block = Heading | Text | Table | Figure


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Return one self-contained HTML file."""
    body = "\n".join(part for block in blocks for part in _html(block))
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def to_markdown(title: str, blocks: Sequence[Block], figures: str) -> str:
    """Return the same as Markdown; figures: the folder its figures lie in."""
    parts = [f"# {_md(title)}"]
    for block in blocks:
        match block:
            case Heading(words):
                parts.append(f"## {_md(words)}")
            case Text(words):
                parts.append(_md(words))
            case Table(heads, rows, numeric):
                parts.append("\n".join(_md_table(heads, rows, numeric)))
            case Figure(name, alt):
                parts.append(f"![{_md(alt)}]({figures}/{name}.svg)")
    return "\n\n".join(parts) + "\n"


def _html(block: Block) -> Iterator[str]:
    match block:
        case Heading(words):
            yield f"<h2>{escape(words)}</h2>"
        case Text(words, is_quiet):
            kind = ' class="quiet"' if is_quiet else ""
            yield f"<p{kind}>{escape(words)}</p>"
        case Table(heads, rows, numeric):
            yield '<div class="wide"><table>'
            yield _html_row("th", heads, numeric)
            for row in rows:
                yield _html_row("td", row, numeric)
            yield "</table></div>"
        case Figure(name, alt, svg):
            yield f'<figure id="{escape(name)}" aria-label="{escape(alt)}">{svg}</figure>'


def _html_row(tag: str, cells: Sequence[str], numeric: Sequence[int]) -> str:
    kinds = [' class="n"' if index in numeric else "" for index in range(len(cells))]
    inner = "".join(
        f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
    )
    return f"<tr>{inner}</tr>"


def _md_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int]
) -> Iterator[str]:
    yield f"| {' | '.join(map(_md, heads))} |"
    yield "|" + "|".join("---:" if i in numeric else "---" for i in range(len(heads))) + "|"
    for row in rows:
        yield f"| {' | '.join(map(_md, row))} |"


_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"})


def _md(words: str) -> str:
    """Return text on one line that Markdown takes for nothing but text."""
    return " ".join(words.split()).translate(_SPECIAL)
