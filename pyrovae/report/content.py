"""What a report is made of: headlines, and sections of tables, pictures, definitions and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from pyrovae.results import Number, Table, Tabled


@dataclass(frozen=True)
class Picture:
    """A figure in a report.

    Attributes:
        figure: drawn in the package's style.
        alt: what it shows, in words, for those who do not see it.
        caption: sentences below it.

    """

    figure: Figure
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Definitions:
    """Names and what they stand for, such as a configuration, versions or hashes.

    Attributes:
        entries: of each name a text, a number, a sequence of those, or a mapping of the same form.
        title: above them.

    """

    entries: Mapping[str, object]
    title: str = ""


@dataclass(frozen=True)
class Caution:
    """Sentences that no reader may miss.

    Attributes:
        text: what they say.

    """

    text: str


Part = Table | Tabled | Picture | Definitions | Caution | str


@dataclass(frozen=True)
class Section:
    """One section of a report.

    Attributes:
        title: of the section.
        prose: paragraphs below it, with empty lines between them.
        parts: what follows; a text is more paragraphs.

    """

    title: str
    prose: str = ""
    parts: Sequence[Part] = field(default_factory=tuple)


@dataclass(frozen=True)
class Headline:
    """One number, or one word, at the top of a report.

    Attributes:
        name: of the quantity.
        value: a number is printed with its standard error.
        note: its unit or meaning, below it.
        doubtful: whether it must not be relied on; the note says why.

    """

    name: str
    value: Number | str
    note: str = ""
    doubtful: bool = False
