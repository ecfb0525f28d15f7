"""Tables that print as text, Markdown, LaTeX, CSV or HTML, with the same numbers in each."""

from __future__ import annotations

import csv
import html
import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 120  # of lines of text

# Control characters, surrogates, and characters without width, some of which reverse the text
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
FORMULA = re.compile(r"\s*[=+@-].")  # start of a cell that spreadsheets evaluate
NUMBER = re.compile(r"\s*[+-]?[\d.]+(e[+-]?\d+)?")


def printable(text: str) -> str:
    """Return a text on one line, with Python's escapes for control characters and invisible ones."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    """Return a text of several lines, each made `printable`."""
    return "\n".join(map(printable, text.split("\n")))


@dataclass(frozen=True)
class Number:
    """A number in a table.

    Attributes:
        value: None where there is none, which prints as a dash.
        digits: behind the point.
        signed: whether a plus is printed too, as of differences.
        error: its standard error, printed behind it.

    """

    value: float | None
    digits: int = 3
    signed: bool = False
    error: float | None = None

    def __str__(self) -> str:
        """Return it as it is printed."""
        if self.value is None:
            return "-"
        text = f"{self.value:{'+' if self.signed else ''}.{self.digits}f}"
        return text if self.error is None else f"{text} +- {self.error:.{self.digits}f}"


@dataclass(frozen=True)
class Interval:
    """Two ends in one cell of a table, as of a confidence interval.

    Attributes:
        low: its lower end; None where there is none, which prints as a dash.
        high: its upper end.
        digits: behind the point.

    """

    low: float | None
    high: float | None
    digits: int = 3

    def __str__(self) -> str:
        """Return it as it is printed, with both signs."""
        if self.low is None or self.high is None:
            return "-"
        return f"[{self.low:+.{self.digits}f}, {self.high:+.{self.digits}f}]"


Cell = str | Number | Interval


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under one header; every text in it is made `printable`.

    Attributes:
        header: of each column; the first column holds the names of the rows.
        rows: as long as the header.
        title: sentences above it.
        notes: sentences below it.

    """

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Escape control characters in the names of data, models and sites."""
        rows = (tuple(printable(cell) if isinstance(cell, str) else cell for cell in row) for row in self.rows)
        object.__setattr__(self, "rows", tuple(rows))
        for name in ("header", "title", "notes"):
            object.__setattr__(self, name, tuple(map(printable, getattr(self, name))))

    def __str__(self) -> str:
        """Return it as text, sentences being wrapped."""
        lines = [*_wrapped(self.title), ""] if self.title else []
        lines += align([self.header, *([str(cell) for cell in row] for row in self.rows)])
        return "\n".join([*lines, "", *_wrapped(self.notes)] if self.notes else lines)

    def to_markdown(self) -> str:
        """Return it in Markdown, title and notes as paragraphs."""
        rows = [self.header, ("---", *("---:" for _ in self.header[1:])), *self.rows]
        lines = ["| " + " | ".join(_markdown(cell) for cell in row) + " |" for row in rows]
        above = [*(_markdown(line) + "  " for line in self.title), ""] if self.title else []
        below = ["", *(_markdown(line) + "  " for line in self.notes)] if self.notes else []
        return "\n".join([*above, *lines, *below]) + "\n"

    def to_latex(self) -> str:
        """Return it as a LaTeX ``tabular`` of the package booktabs, title and notes as comments."""
        rows = [" & ".join(map(_latex, row)) + r" \\" for row in (self.header, *self.rows)]
        return "\n".join(
            [
                *(f"% {line}" for line in self.title),
                rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}",
                *(r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"),
                r"\end{tabular}",
                *(f"% {line}" for line in self.notes),
                "",
            ]
        )

    def to_csv(self) -> str:
        """Return header and rows as comma-separated values: numbers in full, errors in columns of their own."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.header)
        errors = [any(isinstance(cell, Number) and cell.error is not None for cell in column) for column in columns]
        names = [
            [f"{name} low", f"{name} high"]
            if any(isinstance(cell, Interval) for cell in column)
            else [name, "se" if sum(errors) == 1 else f"se of {name}"][: 1 + error]
            for name, column, error in zip(self.header, columns, errors, strict=True)
        ]
        writer.writerow([_csv_text(name) for several in names for name in several])
        for row in self.rows:
            cells = [_csv_values(cell, len(several)) for cell, several in zip(row, names, strict=True)]
            writer.writerow([value for values in cells for value in values])
        return buffer.getvalue()

    def to_html(self) -> str:
        """Return it as HTML without styles; rows keep the indentation of their names."""

        def row(cells: Sequence[Cell], kind: str) -> str:
            first, *rest = [html.escape(str(cell)).replace("+-", "&plusmn;").replace("  ", "&ensp;") for cell in cells]
            scope = "col" if kind == "th" else "row"
            others = "".join(f"<{kind}>{text}</{kind}>" for text in rest)
            return f'<tr><th scope="{scope}">{first}</th>{others}</tr>'

        caption = f"<caption>{'<br>'.join(map(html.escape, self.title))}</caption>" if self.title else ""
        body = "".join(row(cells, "td") for cells in self.rows)
        notes = "".join(f"<p>{html.escape(line)}</p>" for line in self.notes)
        return f"<table>{caption}<thead>{row(self.header, 'th')}</thead><tbody>{body}</tbody></table>{notes}"


class Tabled:
    """A record that shows itself as tables, in a terminal and in a notebook."""

    def tables(self) -> tuple[Table, ...]:
        """Return its tables."""
        raise NotImplementedError

    def __str__(self) -> str:
        """Return the tables as text."""
        return "\n\n".join(str(table) for table in self.tables())

    def to_markdown(self) -> str:
        """Return the tables in Markdown."""
        return "\n".join(table.to_markdown() for table in self.tables())

    def to_latex(self) -> str:
        """Return the tables in LaTeX, each a ``tabular`` of the package booktabs."""
        return "\n".join(table.to_latex() for table in self.tables())

    def to_csv(self) -> str:
        """Return the tables as comma-separated values, an empty line between them."""
        return "\n".join(table.to_csv() for table in self.tables())

    def _repr_html_(self) -> str:
        return "".join(f"<div>{table.to_html()}</div>" for table in self.tables())


def percent(share: float, digits: int = 1) -> str:
    """Return a share as it is printed, such as ``5.3 %``."""
    return f"{100 * share:.{digits}f} %"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines, the first column flush left and the others flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def number(value: float | None, digits: int) -> str:
    """Return a value with so many digits, a dash where there is none."""
    return str(Number(value, digits))


def _wrapped(sentences: Sequence[str]) -> list[str]:
    """Return sentences as lines that are not too wide."""
    wrapper = textwrap.TextWrapper(WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [line for sentence in sentences for line in wrapper.wrap(sentence) or [""]]


def _csv_values(cell: Cell, count: int) -> list[object]:
    """Return a cell as the values of its one or two columns."""
    if isinstance(cell, Interval):
        return [cell.low, cell.high]
    programs: list[object] = [cell.value, cell.error] if isinstance(cell, Number) else [_csv_text(cell), None]
    return programs[:count]


def _csv_text(text: str) -> str:
    """Return a text, quoted if a spreadsheet would evaluate it as a formula."""
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def _markdown(cell: Cell) -> str:
    """Return a cell in Markdown, with escapes for what would start another cell or a tag."""
    return re.sub(r"[\\|<]", r"\\\g<0>", str(cell))


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def _latex(cell: Cell) -> str:
    """Return a cell in LaTeX, numbers in mathematics, where a minus is no hyphen."""
    text = str(cell)
    if not isinstance(cell, str) and text != "-":
        return "$" + text.replace("+-", r"\pm") + "$"
    escaped = "".join(_LATEX.get(character, character) for character in text).replace("+-", r"$\pm$")
    return "{}" + escaped if escaped.startswith(("[", "*")) else escaped  # which LaTeX would read as options of a row
