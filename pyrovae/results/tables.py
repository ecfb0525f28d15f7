"""Tables of numbers with errors, as text, Markdown, LaTeX, CSV, HTML or a pandas frame."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2

if TYPE_CHECKING:
    import pandas

WIDTH = 120  # characters of a line of text

# Control characters, surrogates, and characters without width, some of which reverse the text
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
WORD = re.compile(r"[^\W\d_]{3}")
LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
)
HTML = """\
{%- macro cell(value) %}{{ value | string | replace("+-", "\N{PLUS-MINUS SIGN}") | replace("  ", "&numsp;" | safe) }}
{%- endmacro -%}
{%- macro words(index) %}{% if index in worded %} class="words"{% endif %}{% endmacro -%}
<table>{% if table.title %}<caption>
{%- for line in table.title %}{{ line }}{% if not loop.last %}<br>{% endif %}{% endfor %}</caption>{% endif %}
<thead><tr>
{%- for name in table.header %}<th scope="col"{{ words(loop.index0) }}>{{ cell(name) }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in table.rows %}<tr><th scope="row">{{ cell(row[0]) }}</th>
{%- for value in row[1:] %}<td{{ words(loop.index) }}>{{ cell(value) }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{%- for line in table.notes %}<p>{{ cell(line) }}</p>{% endfor %}"""


def printable(text: str) -> str:
    """Return a text on one line, with Python's escapes for control characters and invisible ones."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    """Return a text of several lines, each made `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def percent(share: float, digits: int = 1) -> str:
    """Return a share as text, such as ``5.3 %``."""
    return f"{100 * share:.{digits}f} %"


@dataclass(frozen=True)
class Number:
    """A number in a table.

    Attributes:
        value: the number; None prints as a dash.
        digits: digits after the decimal point.
        signed: whether to print a plus sign, as for differences.
        error: standard error, printed after the number.
        bold: whether LaTeX and Markdown print it bold.

    """

    value: float | None
    digits: int = 3
    signed: bool = False
    error: float | None = None
    bold: bool = False

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        text = f"{self.value:{'+' if self.signed else ''}.{self.digits}f}"
        return text if self.error is None else f"{text} +- {self.error:.{self.digits}f}"


@dataclass(frozen=True)
class Interval:
    """A confidence interval in a table.

    Attributes:
        low: lower end; None prints the interval as a dash.
        high: upper end.
        digits: digits after the decimal point.

    """

    low: float | None
    high: float | None
    digits: int = 3

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return "-"
        return f"[{self.low:+.{self.digits}f}, {self.high:+.{self.digits}f}]"


Cell = str | Number | Interval


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of text and numbers under one header; all text is made `printable`.

    Attributes:
        header: names of the columns; the first column holds the names of the rows.
        rows: cells, as many in each row as in the header.
        title: sentences above the table.
        notes: sentences below the table.

    """

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rows = (tuple(printable(cell) if isinstance(cell, str) else cell for cell in row) for row in self.rows)
        object.__setattr__(self, "rows", tuple(rows))
        for name in ("header", "title", "notes"):
            object.__setattr__(self, name, tuple(map(printable, getattr(self, name))))

    def to_text(self, width: int = WIDTH) -> str:
        """Return the table as text: sentences wrapped, the first column flush left, the others flush right.

        Columns that exceed the width, in characters, stand below the others, with the first column again: in as few
        parts as possible, of similar width.
        """
        columns = [list(map(str, column)) for column in zip(self.header, *self.rows, strict=True)]
        widths = [max(map(len, column)) for column in columns]
        aligned = [[f"{cell:{'>' if i else '<'}{widths[i]}}" for cell in column] for i, column in enumerate(columns)]
        parts = _split(aligned, width)
        for narrower in range(width - 1, 0, -1):
            if len(split := _split(aligned, narrower)) > len(parts):
                break
            parts = split
        lines = ["\n".join("  ".join(row).rstrip() for row in zip(*part, strict=True)) for part in parts]
        above = [*_wrapped(self.title, width), ""] if self.title else []
        below = ["", *_wrapped(self.notes, width)] if self.notes else []
        return "\n".join([*above, "\n\n".join(lines), *below])

    def __str__(self) -> str:
        return self.to_text()

    __repr__ = __str__

    def to_frame(self) -> pandas.DataFrame:
        """Return the rows as a frame: numbers in full, errors and the ends of intervals in columns of their own."""
        import pandas

        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.header)
        with_error = [any(isinstance(cell, Number) and cell.error is not None for cell in cells) for cells in columns]
        names, values = [], []
        for name, cells, error in zip(self.header, columns, with_error, strict=True):
            if any(isinstance(cell, Interval) for cell in cells):
                names += [f"{name} low", f"{name} high"]
                values += [[getattr(cell, end, None) for cell in cells] for end in ("low", "high")]
                continue
            names.append(name)
            values.append([cell.value if isinstance(cell, Number) else cell for cell in cells])
            if error:
                names.append("se" if sum(with_error) == 1 else f"se of {name}")
                values.append([getattr(cell, "error", None) for cell in cells])
        frame = pandas.DataFrame(dict(enumerate(values)), dtype=object)
        return frame.set_axis(names, axis=1)

    def to_csv(self) -> str:
        """Return the frame as comma-separated values."""
        return self.to_frame().to_csv(index=False, lineterminator="\n")

    def to_markdown(self) -> str:
        """Return the table in Markdown, title and notes as paragraphs."""
        rows = [self.header, ("---", *("---:" for _ in self.header[1:])), *self.rows]
        lines = ["| " + " | ".join(_markdown(cell) for cell in row) + " |" for row in rows]
        above = [*(_markdown(line) + "  " for line in self.title), ""] if self.title else []
        below = ["", *(_markdown(line) + "  " for line in self.notes)] if self.notes else []
        return "\n".join([*above, *lines, *below]) + "\n"

    def to_latex(self) -> str:
        """Return the table as a LaTeX ``tabular`` with the rules of booktabs, title and notes as comments."""
        header, *rows = (" & ".join(map(_latex, row)) + r" \\" for row in (self.header, *self.rows))
        begin = rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}"
        lines = (begin, r"\toprule", header, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}")
        title, notes = ([f"% {line}" for line in lines] for lines in (self.title, self.notes))
        return "\n".join([*title, *lines, *notes, ""])

    def to_html(self) -> str:
        """Return the table as HTML without styles; columns of words have the class ``words``."""
        columns = enumerate(zip(*self.rows, strict=True))
        worded = {i for i, cells in columns if i and any(isinstance(c, str) and WORD.search(c) for c in cells)}
        return jinja2.Template(HTML, autoescape=True).render(table=self, worded=worded)

    _repr_html_ = to_html


class Tabled:
    """Base class of records that print as tables, in a terminal and in a notebook."""

    def tables(self) -> tuple[Table, ...]:
        """Return the tables of this record."""
        raise NotImplementedError

    def to_text(self, width: int = WIDTH) -> str:
        """Return the tables as text of a width in characters."""
        return "\n\n".join(table.to_text(width) for table in self.tables())

    def __str__(self) -> str:
        return self.to_text()

    __repr__ = __str__

    def to_markdown(self) -> str:
        """Return the tables in Markdown."""
        return "\n".join(table.to_markdown() for table in self.tables())

    def to_latex(self) -> str:
        """Return the tables in LaTeX, each a ``tabular`` with the rules of booktabs."""
        return "\n".join(table.to_latex() for table in self.tables())

    def to_csv(self) -> str:
        """Return the tables as comma-separated values, with an empty line between them."""
        return "\n".join(table.to_csv() for table in self.tables())

    def _repr_html_(self) -> str:
        return "".join(f"<div>{table.to_html()}</div>" for table in self.tables())


def _split(columns: Sequence[list[str]], width: int) -> list[list[list[str]]]:
    """Return columns in parts of a width at most, if no column is wider, each with the first column."""
    first, *others = columns
    parts = [[first]]
    for column in others:
        if len(parts[-1]) > 1 and sum(len(cells[0]) + 2 for cells in parts[-1]) + len(column[0]) > width:
            parts.append([first])
        parts[-1].append(column)
    return parts


def _wrapped(sentences: Sequence[str], width: int) -> list[str]:
    wrapper = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [line for sentence in sentences for line in wrapper.wrap(sentence) or [""]]


def _markdown(cell: Cell) -> str:
    """Return a cell in Markdown, escaped where it would start another cell or a tag."""
    text = re.sub(r"[\\|<]", r"\\\g<0>", str(cell))
    return f"**{text}**" if isinstance(cell, Number) and cell.bold else text


def _latex(cell: Cell) -> str:
    """Return a cell in LaTeX, numbers in math mode, which sets a minus sign and not a hyphen."""
    text = str(cell)
    if not isinstance(cell, str) and text != "-":
        text = text.replace("+-", r"\pm")
        return rf"$\mathbf{{{text}}}$" if isinstance(cell, Number) and cell.bold else f"${text}$"
    escaped = re.sub(r"\bL\\_(\d+)", r"$L_{\1}$", text.translate(LATEX).replace("+-", r"$\pm$"))
    return "{}" + escaped if escaped.startswith(("[", "*")) else escaped  # else LaTeX reads the options of a row
