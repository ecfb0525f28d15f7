"""Tables that print as text, Markdown, LaTeX, CSV or HTML, with the same numbers in each."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass


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


Cell = str | Number


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under one header.

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

    def __str__(self) -> str:
        """Return it as text."""
        lines = [*self.title, ""] if self.title else []
        lines += align([self.header, *([str(cell) for cell in row] for row in self.rows)])
        return "\n".join([*lines, "", *self.notes] if self.notes else lines)

    def to_markdown(self) -> str:
        """Return it in Markdown, title and notes as paragraphs."""
        rows = [self.header, ("---", *("---:" for _ in self.header[1:])), *self.rows]
        lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
        above = [*(line + "  " for line in self.title), ""] if self.title else []
        below = ["", *(line + "  " for line in self.notes)] if self.notes else []
        return "\n".join([*above, *lines, *below]) + "\n"

    def to_latex(self) -> str:
        """Return it as a LaTeX ``tabular`` of the package booktabs, title and notes as comments."""
        rows = [" & ".join(_latex(str(cell)) for cell in row) + r" \\" for row in (self.header, *self.rows)]
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
        """Return header and rows as comma-separated values, numbers in full and each error in a column of its own."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.header)
        split = [any(isinstance(cell, Number) and cell.error is not None for cell in column) for column in columns]
        writer.writerow(
            [word for name, two in zip(self.header, split, strict=True) for word in [name, "se"][: 1 + two]]
        )
        for row in self.rows:
            cells: list[object] = []
            for cell, two in zip(row, split, strict=True):
                pair = [cell.value, cell.error] if isinstance(cell, Number) else [cell, None]
                cells += pair[: 1 + two]
            writer.writerow(cells)
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

    def _repr_html_(self) -> str:
        return "".join(f"<div>{table.to_html()}</div>" for table in self.tables())


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


_LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "\\": r"\textbackslash{}"}


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return escaped.replace("+-", r"$\pm$") if "+-" in escaped else escaped
