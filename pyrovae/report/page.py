"""A report as one HTML file: nothing in it is fetched, nothing in it runs, and the same input gives the same bytes.

>>> page = render(
...     [
...         Section("Bounds", "What the ladder says.", [table, Picture(figure, alt="A rising curve", caption="L_K.")]),
...         Section("Provenance", parts=[Definitions({"data": "digits/test", "sha256": "51ed4e35..."})]),
...     ],
...     title="digits/test",
...     summary=[Headline("ELBO", Number(-24.26, 2, error=0.20), "nats per datum")],
...     date="2026-11-21",
... )

It reads on a wide screen, on a phone and on paper, in light and dark. Every string is escaped. In sentences, `code`
between backticks is set as such, an address that begins with https:// becomes a link, and L_50 gets its subscript.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from itertools import count, cycle

from pyrovae.report.content import Caution, Definitions, Headline, Picture, Section
from pyrovae.report.vector import shades, to_svg
from pyrovae.results import Number, Table, Tabled
from pyrovae.results.tables import printable_lines

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # a browser that obeys it fetches nothing
CELL = re.compile(r"<(th scope=\"\w+\"|td)>")
SUBSCRIPT = re.compile(r"\bL_(\d+|K)\b")
WORD = re.compile(r"[^\W\d_]{3}")
HASH = re.compile(r"[0-9a-f]{12,}")


def render(
    sections: Sequence[Section], *, title: str, date: str, summary: Sequence[Headline] = (), lead: str = ""
) -> str:
    """Return a report as one HTML document.

    Args:
        sections: in the order in which they are read.
        title: of the whole.
        date: in ISO format; it stands in this one place.
        summary: the numbers at the top.
        lead: paragraphs below them.

    """
    pictures = count(1)
    ids = [f"section-{number}" for number in range(1, 1 + len(sections))]
    contents = "".join(
        f'<li><a href="#{name}">{_signs(html.escape(section.title))}</a></li>'
        for name, section in zip(ids, sections, strict=True)
    )
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{html.escape(title)}</title>",
        '<link rel="icon" href="data:,">',
        f"<style>\n{_style()}</style>",
        "</head>",
        "<body>",
        f'<header><h1>{html.escape(title)}</h1><p class="date"><time>{html.escape(date)}</time></p></header>',
        f'<nav aria-label="Contents"><h2>Contents</h2><ol>{contents}</ol></nav>',
        "<main>",
        *([f'<dl class="summary">{"".join(map(_headline, summary))}</dl>'] if summary else []),
        *_paragraphs(lead),
        *(line for name, section in zip(ids, sections, strict=True) for line in _section(section, name, pictures)),
        "</main>",
        "</body>",
        "</html>",
    ]
    return printable_lines("\n".join(lines) + "\n")


def _style() -> str:
    """Return the style sheet below the colors that it uses."""
    light, dark = shades(dark=False), shades(dark=True)
    sheet = resources.files("pyrovae.report").joinpath("page.css").read_text(encoding="utf-8")
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{sheet}"


def _headline(headline: Headline) -> str:
    value = str(headline.value)
    if isinstance(headline.value, Number):
        value, plus_minus, error = value.replace("-", "\N{MINUS SIGN}").partition(" +\N{MINUS SIGN} ")
        value += f" <small>&plusmn; {error}</small>" if plus_minus else ""
    else:
        value = _typeset(value)
    kind = ' class="doubtful"' if headline.doubtful else ""
    note = f"<dd>{_typeset(headline.note)}</dd>" if headline.note else ""
    return f"<div{kind}><dt>{_typeset(headline.name)}</dt><dd><strong>{value}</strong></dd>{note}</div>"


def _section(section: Section, name: str, pictures: Iterator[int]) -> Iterator[str]:
    yield f'<section id="{name}" aria-labelledby="{name}-title">'
    yield f'<h2 id="{name}-title">{_signs(html.escape(section.title))}</h2>'
    yield from _paragraphs(section.prose)
    for part in section.parts:
        match part:
            case str():
                yield from _paragraphs(part)
            case Table():
                yield _table(part)
            case Tabled():
                yield from map(_table, part.tables())
            case Picture():
                yield _picture(part, next(pictures))
            case Definitions():
                yield (f"<h3>{_typeset(part.title)}</h3>" if part.title else "") + _definitions(part.entries)
            case Caution():
                yield f'<div class="caution" role="note">{"".join(_paragraphs(part.text))}</div>'
            case _:
                raise TypeError(
                    "a part of a section is a Table, a Tabled record, a Picture, Definitions, a Caution or a text, but "
                    f"{section.title!r} has a {type(part).__name__}; wrap it in one of those"
                )
    yield "</section>"


def _paragraphs(text: str) -> list[str]:
    return [f"<p>{_typeset(paragraph)}</p>" for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def _typeset(text: str) -> str:
    """Return a text escaped, with code, links, plus-minus and subscripts."""
    pieces = re.split(r"(`[^`]+`|https://[^\s<>()`]*[^\s<>()`.,;:])", text)
    return "".join(
        f"<code>{html.escape(piece[1:-1])}</code>"
        if piece.startswith("`") and len(piece) > 2
        else f'<a href="{html.escape(piece)}">{html.escape(piece)}</a>'
        if piece.startswith("https://")
        else _signs(html.escape(piece))
        for piece in pieces
    )


def _signs(escaped: str) -> str:
    """Set plus-minus, and lower what follows an underscore, which can be searched and copied but is not seen."""
    return SUBSCRIPT.sub(r'L<sub><span class="joint">_</span>\1</sub>', escaped.replace("+-", "&plusmn;"))


def _table(table: Table) -> str:
    """Return a table that scrolls in its own box, with columns of words flush left, and its notes below it."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.header)
    words = [any(isinstance(cell, str) and WORD.search(cell) for cell in column) for column in columns[1:]]
    worded = cycle([False, *words])  # the names of the rows are flush left anyway
    text, _, notes = _signs(table.to_html()).replace("<th>", '<th scope="col">').partition("</table>")
    text = CELL.sub(lambda cell: f'<{cell[1]} class="words">' if next(worded) else cell[0], text)
    label = html.escape(" ".join(table.title) or "Table")
    box = f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{text}</table></div>'
    below = f'<div class="notes">{notes}</div>' if notes else ""
    return f'<div class="table">{box}{below}</div>'


def _picture(picture: Picture, number: int) -> str:
    """Return a figure that scrolls in its own box rather than become too small to read, and its caption."""
    svg = to_svg(picture.figure, prefix=f"figure-{number}", alt=picture.alt)
    return (
        f'<figure id="figure-{number}"><div class="scroll" role="group" tabindex="0" aria-label="Figure {number}">'
        f"{svg}</div><figcaption><b>Figure {number}.</b> {_typeset(picture.caption)}</figcaption></figure>"
    )


def _definitions(entries: Mapping[str, object]) -> str:
    items = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{_definition(value)}</dd></div>" for name, value in entries.items()
    )
    return f"<dl>{items}</dl>"


def _definition(value: object) -> str:
    if isinstance(value, Mapping):
        return _definitions(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_definition, value))
    text = html.escape(str(value))
    return f"<code>{text}</code>" if HASH.fullmatch(text) else text
