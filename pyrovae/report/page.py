"""A report as one HTML file that needs no other file, runs no script and has the same bytes for the same input.

>>> page = render(
...     [
...         Section("Bounds", "The ladder.", [table, Picture(figure, alt="A rising curve", caption="L_K.")]),
...         Section("Provenance", parts=[Definitions({"data": "digits/test", "sha256": "51ed4e35..."})]),
...     ],
...     title="digits/test",
...     summary=[Headline("ELBO", Number(-24.26, 2, error=0.20), "nats per datum")],
...     date="2026-11-21",
... )

The template is ``page.html``, its style sheet ``page.css``. All text is escaped. In sentences, `code` stands between
backticks, an address that begins with https:// is a link, and L_50 has a subscript.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from pyrovae.report.style import to_svg
from pyrovae.results import Number, Table, Tabled
from pyrovae.results.tables import printable_lines

SUBSCRIPT = re.compile(r"\bL_(\d+|K)\b")
CODE_OR_LINK = re.compile(r"(`[^`]+`|https://[^\s<>()`]*[^\s<>()`.,;:])")
HASH = re.compile(r"[0-9a-f]{12,}")


@dataclass(frozen=True)
class Picture:
    """A figure in a report.

    Attributes:
        figure: figure in the package's style.
        alt: description for readers who do not see it.
        caption: sentences below it.

    """

    figure: Figure
    alt: str
    caption: str = ""

    @property
    def source(self) -> str:
        """Data URI of the figure as SVG."""
        return "data:image/svg+xml;base64," + base64.b64encode(to_svg(self.figure)).decode()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of a page."""
        width, height = self.figure.get_size_inches()
        return round(96 * width), round(96 * height)


@dataclass(frozen=True)
class Definitions:
    """Names and their values, such as a configuration, versions or hashes.

    Attributes:
        entries: for each name a text, a number, a sequence of these, or a mapping of the same form.
        title: heading.

    """

    entries: Mapping[str, object]
    title: str = ""


@dataclass(frozen=True)
class Caution:
    """A highlighted warning.

    Attributes:
        text: sentences.

    """

    text: str


Part = Table | Tabled | Picture | Definitions | Caution | str


@dataclass(frozen=True)
class Section:
    """One section of a report.

    Attributes:
        title: heading.
        prose: paragraphs below the heading, with empty lines between them.
        parts: content below; a text is more paragraphs.

    """

    title: str
    prose: str = ""
    parts: Sequence[Part] = field(default_factory=tuple)


@dataclass(frozen=True)
class Headline:
    """One number, or one word, at the top of a report.

    Attributes:
        name: name of the quantity.
        value: a number, printed with its standard error, or a text.
        note: unit or meaning.
        doubtful: whether the value is unreliable; the note gives the reason.

    """

    name: str
    value: Number | str
    note: str = ""
    doubtful: bool = False


def render(
    sections: Sequence[Section], *, title: str, date: str, summary: Sequence[Headline] = (), lead: str = ""
) -> str:
    """Return a report as one HTML document.

    Args:
        sections: sections in their order.
        title: title of the report.
        date: date in ISO format.
        summary: numbers at the top.
        lead: paragraphs below them.

    Raises:
        TypeError: if a part of a section has another type than `Part`.

    """
    for section in sections:
        for part in section.parts:
            if not isinstance(part, Part):
                raise TypeError(
                    "a part of a section is a Table, a Tabled record, a Picture, Definitions, a Caution or a text, but "
                    f"{section.title!r} has a {type(part).__name__}; wrap it in one of those"
                )
    page = _environment().get_template("page.html")
    return printable_lines(page.render(sections=sections, title=title, date=date, summary=summary, lead=lead) + "\n")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyrovae.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"sentence": _sentence, "signs": _signs, "paragraphs": _paragraphs, "headline": _headline}
    environment.tests["hash"] = lambda value: HASH.fullmatch(str(value)) is not None
    environment.globals["kind"] = _kind
    return environment


def _kind(part: Part) -> str:
    """Return the macro of the template that renders a part."""
    kinds = {Table: "table", Tabled: "tabled", Picture: "picture", Definitions: "definitions", Caution: "caution"}
    return next((name for cls, name in kinds.items() if isinstance(part, cls)), "text")


def _paragraphs(text: str) -> list[str]:
    return [paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def _sentence(text: str) -> Markup:
    """Return a text as HTML, with code, links, plus-minus signs and subscripts."""
    html = Markup()
    for piece in CODE_OR_LINK.split(text):
        if piece.startswith("`") and len(piece) > 2:
            html += Markup("<code>{}</code>").format(piece[1:-1])
        elif piece.startswith("https://"):
            html += Markup('<a href="{0}">{0}</a>').format(piece)
        else:
            html += _signs(piece)
    return html


def _signs(text: Any) -> Markup:
    """Return a text with plus-minus signs and subscripts; the underscore is hidden and can still be copied."""
    html = str(escape(text)).replace("+-", "±")
    return Markup(SUBSCRIPT.sub(r'L<sub><span class="joint">_</span>\1</sub>', html))


def _headline(value: Number | str) -> Markup:
    if isinstance(value, str):
        return _sentence(value)
    number, plus_minus, error = str(value).partition(" +- ")
    number = number.replace("-", "\N{MINUS SIGN}")
    return Markup("{} <small>± {}</small>").format(number, error) if plus_minus else escape(number)
