"""The command ``pyrovae compare``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pyrovae.cli.parser import Parser
from pyrovae.cli.terminal import print_text
from pyrovae.report import compare
from pyrovae.results import Comparison
from pyrovae.runtime import replacing

FORMATS: dict[str, Callable[[Comparison], str]] = {
    "text": lambda comparison: f"{comparison}\n",
    "markdown": Comparison.to_markdown,
    "latex": Comparison.to_latex,
    "csv": Comparison.to_csv,
}
ENDINGS = {".md": "markdown", ".tex": "latex", ".csv": "csv"}


def compare_runs(argv: Sequence[str]) -> None:
    """Print runs side by side."""
    parser = Parser(
        prog="pyrovae compare",
        usage="pyrovae compare RUN RUN ... [options]",
        description="Put evaluated runs side by side: paired differences with standard errors and 95 % intervals, and "
        "a ranking. Runs on other data, binarized or observed otherwise or in another base measure are refused.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, evaluated by pyrovae evaluate")
    group = parser.add_argument_group("comparison")
    group.add_argument("--reference", metavar="NAME", help="run that the others are compared to (default: the first)")
    group.add_argument(
        "--report", metavar="NAME",
        help="report of each run that is compared (default: the one that all have in common, or the only one)",
    )  # fmt: skip
    group.add_argument("--blocks", action="store_true", help="separate tables for what may not be compared")
    group.add_argument(
        "--format", choices=tuple(FORMATS), help="of the table (default: by the ending of --output, else text)"
    )
    group.add_argument("--output", metavar="FILE", help="write the table there (default: print it)")
    options = parser.options(argv)
    output = None if options["output"] is None else Path(options["output"])
    named = ENDINGS.get(output.suffix.lower(), "text") if output else "text"
    comparison = compare(
        options["runs"], reference=options["reference"], blocks=options["blocks"], name=options["report"]
    )
    text = FORMATS[options["format"] or named](comparison)
    if output is None:
        print_text(text)
        return
    _write(output, text)
    print_text(f"comparison: {output}\n")


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another --output") from None
