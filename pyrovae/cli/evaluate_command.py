"""The command ``pyrovae evaluate``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyrovae.cli.data_options import add_data, add_run, data_of, load_run
from pyrovae.cli.parser import Parser
from pyrovae.cli.terminal import file_name, print_error, print_text
from pyrovae.data import Split, fingerprint
from pyrovae.data.loader import Loader
from pyrovae.evaluation import Checks, evaluate
from pyrovae.evaluation.evaluator import weights_hash
from pyrovae.evaluation.resume import Journal
from pyrovae.report import write_report
from pyrovae.report.folder import REPORT, check_report_name, find_report
from pyrovae.results import Evaluation
from pyrovae.runtime.distributed import Group, init_distributed
from pyrovae.training import Run
from pyrovae.training.config import ENGINES, choose_device

CHECKS = Checks.__dataclass_fields__
LONGEST = 200  # bytes of the name of a report; file systems allow 255
NAMED = {  # word in the name of a report for each option that changes the evaluation
    "data": "{}",
    "data.transform": "{}",
    "data.seed": "data-seed-{}",
    "split": "{}",
    "num_data": "first-{}",
    "ks": "K-{}",
    "seed": "seed-{}",
    **{name: f"{name.removeprefix('num_')}-{{}}" for name in CHECKS},
}


def evaluate_run(argv: Sequence[str]) -> None:
    """Report the bounds of a run."""
    parser = Parser(
        prog="pyrovae evaluate",
        usage="pyrovae evaluate RUN [options]",
        description="Report the ELBO of a run beside its IWAE bounds, on its test data, and how far they can be "
        "trusted, on one HTML page: RUN/report/index.html. An evaluation with other options has a folder of its own, "
        "such as RUN/report-validation-first-200, and one that is finished is shown again.",
    )
    add_data(parser, default=None)
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--split", choices=("train", "validation", "test"), default="test", help="part of the data (default: test)"
    )
    group.add_argument("--num_data", type=int, metavar="N", help="evaluate only the first N (default: all)")
    group.add_argument(
        "--ks", type=int, nargs="+", default=[1, 5, 50, 500, 5000], metavar="K",
        help="numbers of particles of the IWAE bounds, each dividing the next (default: 1 5 50 500 5000)",
    )  # fmt: skip
    group.add_argument(
        "--batch_size", type=int, metavar="N", help="data whose particles are drawn together (default: by K)"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    group.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps (default: auto)"
    )
    group.add_argument(
        "--engine", choices=ENGINES, default="auto",
        help="captured (the scoring of particles is compiled), eager, or auto: by their number (default: auto)",
    )  # fmt: skip
    group.add_argument(
        "--checks",
        choices=("true", "false"),
        default="true",
        help="run the checks that are listed below too (default: true)",
    )
    group.add_argument(
        "--report",
        metavar="NAME",
        help="folder in RUN that is written to (default: report, then what is not the default)",
    )
    group.add_argument("--overwrite", action="store_true", help="evaluate anew, and replace the report of that name")
    parser.add_record("checks, on the first of the data", Checks)
    add_run(parser)
    options = parser.options(argv)
    if options["report"] is None:
        options["report"] = _name({name: parser.get_default(name) for name in NAMED}, options)
    check_report_name(options["report"])
    with init_distributed(options["device"]) as processes, ExitStack() as locks:
        _evaluate(options, processes, locks)


def _evaluate(options: dict[str, Any], processes: Group, locks: ExitStack) -> None:
    """Evaluate in this process, or in one of several, of which the first goes on to the checks and the report."""
    run = load_run(options)
    processes.from_first(lambda: locks.enter_context(run.folder.lock("evaluated")))
    vae = run.vae.to(choose_device(options["device"]))
    data = processes.main_process_first(lambda: data_of(run, options))
    if processes.first and fingerprint(data.train.stored) != run.config["data"]["hash"]:
        print_text("note: these are not the data that the run was trained on\n")
    split = getattr(data, options["split"])
    split = split if options["num_data"] is None else split.first(options["num_data"])
    checks = Checks(**{name: options[name] for name in CHECKS}) if options["checks"] == "true" else None
    path = _journal_path(run, options)
    if processes.from_first(lambda: _show_finished(run, split, checks, options)):
        Journal(path).remove()  # left by a process that was killed after its report was whole
        return
    evaluation = None
    try:
        with Journal(path) as journal:
            evaluation = evaluate(
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
                _write(run, evaluation, split, options)
    except BaseException:
        if processes.first and path.exists():
            print_error("\nTo go on: the same command again\n")
        raise
    finally:
        if processes.first and evaluation is not None:
            print_text(f"{evaluation}\n")
    print_text(f"\nreport: {run.folder.path / options['report'] / 'index.html'}\n")


def _show_finished(run: Run, split: Split, checks: Checks | None, options: Mapping[str, Any]) -> bool:
    """Print the evaluation that was asked for if a report of it exists, and return whether one does.

    Raises:
        ValueError: if there is a report of that name, but of another evaluation.

    """
    if options["overwrite"]:
        return False
    asked = {
        "weights": weights_hash(run.vae.model, run.vae.guide),
        "checks": None if checks is None else asdict(checks),
    }

    def is_same(found: Evaluation) -> bool:
        return (
            found.data_hash == Loader(split).hash()
            and [rung.num_particles for rung in found.iwae] == options["ks"]
            and found.seed == options["seed"]
            and {name: found.settings.get(name) for name in asked} == asked
        )

    found = find_report(run.folder, options["report"], is_same)
    if found is None:
        return False
    page = run.folder.path / options["report"] / "index.html"
    print_text(f"{found}\n\nreport: {page}\nwritten before, on {found.date[:10]}; --overwrite evaluates anew\n")
    return True


def _write(run: Run, evaluation: Evaluation, split: Split, options: Mapping[str, Any]) -> None:
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
        overwrite=options["overwrite"],
    )


def _name(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Return the name of a report: a word for each option that is not the default."""
    checked = options["checks"] == "true"
    words = [REPORT]
    for option, text in NAMED.items():
        value = options[option]
        if value != defaults[option] and (checked or option not in CHECKS):
            value = Path(value).stem if option == "data" else value
            words.append(text.format("-".join(map(str, value)) if isinstance(value, list) else value))
    name = file_name("-".join([*words, *([] if checked else ["no-checks"])]))
    return name if len(name.encode()) <= LONGEST else f"{name[: LONGEST // 4]}-{_digest(name)}"


def _journal_path(run: Run, options: Mapping[str, Any]) -> Path:
    """Return the progress file: one for each set of options, so that none overwrites the progress of another."""
    command = repr([options[name] for name in (*NAMED, "data.root", "batch_size", "device", "engine")])
    return run.folder.path_of(f"{options['report']}/unfinished-{_digest(command)}.safetensors")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
