"""The command ``pyrovae evaluate``."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyrovae.bounds.multi_sample import check_ladder
from pyrovae.cli.data_options import add_data, add_run, load_run, run_data
from pyrovae.cli.parser import Parser
from pyrovae.cli.terminal import file_name, print_error, print_text, text_width
from pyrovae.compile import ENGINES
from pyrovae.data import Data, Split, fingerprint
from pyrovae.evaluation import Checks
from pyrovae.evaluation import evaluate as evaluate_programs
from pyrovae.evaluation.evaluator import weights_of
from pyrovae.evaluation.resume import Journal
from pyrovae.report import write_report
from pyrovae.report.report_files import REPORT, check_report_name, find_report
from pyrovae.results import Evaluation
from pyrovae.runtime.distributed import Group, init_distributed
from pyrovae.runtime.environment import choose_device
from pyrovae.training import Run

CHECKS = Checks.__dataclass_fields__
NAMED = {  # word in the name of a report, for each option that changes the evaluation
    "data": "{}",
    "data.transform": "{}",
    "data.seed": "data-seed-{}",
    "split": "{}",
    "num_data": "first-{}",
    "ks": "K-{}",
    "seed": "seed-{}",
    **{name: f"{name.removeprefix('num_')}-{{}}" for name in CHECKS},
}


def evaluate(argv: Sequence[str]) -> None:
    """Report the bounds of a run."""
    run_evaluation(evaluation_options(argv))


def run_evaluation(options: dict[str, Any], *, output: Callable[[str], None] = print_text) -> None:
    """Evaluate the run that the options name, and write its report; ``output`` takes the results as text."""
    with init_distributed(options["device"]) as processes, ExitStack() as locks:
        _evaluate(options, processes, locks, output)


def evaluation_options(argv: Sequence[str]) -> dict[str, Any]:
    """Return the options, with the name of the report."""
    parser = Parser(
        prog="pyrovae evaluate",
        usage="pyrovae evaluate RUN [options]",
        description="Report the ELBO and the IWAE bounds of a run on its test data, and how reliable they are, on one "
        "HTML page: RUN/report/index.html. An evaluation with other options has a folder of its own, such as "
        "RUN/report-validation-first-200. The same command again shows a finished evaluation.",
    )
    add_data(parser, default=None)
    group = parser.add_argument_group("evaluation")
    add = functools.partial(parser.add, group)
    add_bounds(parser, group)
    add("batch_size", "data points per batch (default: by K)", type=int)
    add("seed", "seed of the draws", default=0)
    add("device", "auto, cpu, cuda, cuda:1 or mps", default="auto")
    text = "captured (scoring is compiled), eager, or auto: by the number of particles"
    add("engine", text, default="auto", choices=ENGINES)
    add("checks", "run the checks listed below", default="true", choices=("true", "false"))
    text = "folder of the report in RUN (default: report, followed by the options that differ from their defaults)"
    add("report", text)
    add("overwrite", "evaluate again, and replace the report of that name", action="store_true")
    parser.add_record("checks, on the first data points", Checks)
    add_run(parser)
    options = parser.options(argv)
    if options["report"] is None:
        options["report"] = _name({name: parser.get_default(name) for name in NAMED}, options)
    check_report_name(options["report"])
    check_ladder(tuple(options["ks"]))
    return options


def add_bounds(parser: Parser, group: Any) -> None:
    """Add the data and the numbers of particles of an evaluation."""
    add = functools.partial(parser.add, group)
    add("split", "part of the data", default="test", choices=("train", "validation", "test"))
    add("num_data", "evaluate only the first N (default: all)", type=int)
    text = "numbers of particles of the IWAE bounds, each a divisor of the next"
    add("ks", text, default=[1, 5, 50, 500, 5000], type=int, nargs="+", metavar="K")


def choose_split(data: Data, options: Mapping[str, Any]) -> Split:
    """Return the data to be evaluated."""
    split: Split = getattr(data, options["split"])
    return split if options["num_data"] is None else split.first(options["num_data"])


def _evaluate(options: dict[str, Any], processes: Group, locks: ExitStack, output: Callable[[str], None]) -> None:
    """Evaluate on one of the ranks; the main process also runs the checks and writes the report."""
    run = load_run(options)
    processes.from_first(lambda: locks.enter_context(run.folder.lock("evaluated")))
    vae = run.vae.to(choose_device(options["device"]))
    data = processes.main_process_first(lambda: run_data(run, options))
    if processes.first and fingerprint(data.train.stored) != run.config["data"]["hash"]:
        output("note: these are not the data that the run was trained on\n")
    split = choose_split(data, options)
    checks = Checks(**{name: options[name] for name in CHECKS}) if options["checks"] == "true" else None
    path = _journal_path(run, options)
    page = run.folder.path / options["report"] / "index.html"
    finished = processes.from_first(lambda: _find_finished(run, split, checks, options))
    if finished is not None:
        text = finished.to_text(text_width())
        output(f"{text}\n\nreport: {page}\nwritten on {finished.date[:10]}; --overwrite evaluates anew\n")
        Journal(path).remove()  # left by a process that was killed after it had written the report
        return
    evaluation = None
    try:
        with Journal(path) as journal:
            evaluation = evaluate_programs(
                vae.model,
                vae.guide,
                split,
                ks=tuple(options["ks"]),
                checks=checks if processes.first else None,
                batch_size=options["batch_size"],
                seed=options["seed"],
                device=options["device"],
                engine=options["engine"],
                journal=journal,
            )
            if processes.first:
                vae = run.vae.cpu()
                write_report(
                    run.folder.path,
                    evaluation,
                    model=vae.model,
                    guide=vae.guide,
                    data=split,
                    history=run.history,
                    settings=run.config,
                    name=options["report"],
                    overwrite=bool(options["overwrite"]),
                )
    except BaseException:
        if processes.first and path.exists():
            print_error("\nTo resume: the same command again\n")
        raise
    finally:
        if processes.first and evaluation is not None:
            output(f"{evaluation.to_text(text_width())}\n")
    output(f"\nreport: {page}\n")


def _find_finished(run: Run, split: Split, checks: Checks | None, options: Mapping[str, Any]) -> Evaluation | None:
    """Return the evaluation of these options from its report; None if there is none."""
    if options["overwrite"]:
        return None
    weights = weights_of([run.vae])["weights"]
    requested = (split.hash(), options["ks"], options["seed"], weights, checks and asdict(checks))

    def is_wanted(report: Evaluation) -> bool:
        ks, settings = [rung.num_particles for rung in report.iwae], report.settings
        return (report.data_hash, ks, report.seed, settings.get("weights"), settings.get("checks")) == requested

    return find_report(run.folder, options["report"], is_wanted)


def _name(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Return the name of a report: one word for each option that differs from its default."""
    checked = options["checks"] == "true"
    words = [REPORT]
    for option, text in NAMED.items():
        value = options[option]
        if value != defaults[option] and (checked or option not in CHECKS):
            value = Path(value).stem if option == "data" else value
            words.append(text.format("-".join(map(str, value)) if isinstance(value, list) else value))
    return file_name("-".join([*words, *([] if checked else ["no-checks"])]))


def _journal_path(run: Run, options: Mapping[str, Any]) -> Path:
    """Return the path of the progress file, which differs between sets of options."""
    command = repr([options[name] for name in (*NAMED, "data.root", "batch_size", "device", "engine")])
    digest = hashlib.sha256(command.encode()).hexdigest()[:8]
    return run.folder.path_of(f"{options['report']}/unfinished-{digest}.safetensors")
