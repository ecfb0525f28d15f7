"""The command ``pyrovae compare``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pyrovae.cli.parser import Parser
from pyrovae.cli.terminal import print_text, text_width, write_file
from pyrovae.report import compare as compare_runs
from pyrovae.report.page import render_comparison
from pyrovae.results import Comparison

FORMATS: dict[str, tuple[str, Callable[[Comparison], str]]] = {  # by name, with the ending of a file
    "text": (".txt", lambda comparison: f"{comparison}\n"),
    "markdown": (".md", Comparison.to_markdown),
    "latex": (".tex", Comparison.to_latex),
    "csv": (".csv", Comparison.to_csv),
    "json": (".json", Comparison.to_json),
    "html": (".html", render_comparison),
}
ENDINGS = {"": "text"} | {ending: name for name, (ending, _) in FORMATS.items()}


def compare(argv: Sequence[str]) -> None:
    """Print or write the comparison of runs."""
    parser = Parser(
        prog="pyrovae compare",
        usage="pyrovae compare RUN RUN ... [options]",
        description="Compare evaluated runs: paired differences with standard errors and 95 % intervals, and a "
        "ranking. Runs that differ only in their training seed are one model. All runs must use the same data, "
        "binarization, observed values and base measure.",
    )
    text = "run folders, evaluated by pyrovae evaluate; files among folders, as in runs/sweep/*, are skipped"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=text)
    group = parser.add_argument_group("comparison")
    parser.add(group, "reference", "run to which the others are compared (default: the first)")
    text = "report of each run that is compared (default: the name that all runs have in common, or the only one)"
    parser.add(group, "report", text)
    text = "one row for runs that differ only in --seed: a mean over seeds, with errors over data and seeds"
    parser.add(group, "group_seeds", text, default="true", choices=("true", "false"))
    parser.add(group, "blocks", "separate tables for runs that are not comparable", action="store_true")
    text = "format of the table (default: by the ending of --output, else text)"
    parser.add(group, "format", text, choices=tuple(FORMATS))
    parser.add(group, "output", "file of the table (default: print it)", metavar="FILE")
    options = parser.options(argv)
    output = Path(options["output"] or "")
    table_format = options["format"] or ENDINGS.get(output.suffix.lower())
    if table_format is None:
        endings = ", ".join(filter(None, ENDINGS))
        raise ValueError(f"--output ends in one of {endings}, but received {output}; rename it, or choose a --format")
    folders = [run for run in options["runs"] if not Path(run).is_file()]
    comparison = compare_runs(
        folders or options["runs"],
        reference=options["reference"],
        blocks=bool(options["blocks"]),
        name=options["report"],
        group_seeds=options["group_seeds"] == "true",
    )
    table = FORMATS[table_format][1](comparison)
    if options["output"]:
        write_file(output, table.encode(), "--output")
        print_text(f"comparison: {output}\n")
    else:
        print_text(f"{comparison.to_text(text_width())}\n" if table_format == "text" else table)
