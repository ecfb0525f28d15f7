"""The command ``pyrovae evaluate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from pyrovae.cli.data import add_data, add_run, data_of, load_run
from pyrovae.cli.options import Parser
from pyrovae.data import fingerprint
from pyrovae.evaluate import Checks, evaluate
from pyrovae.processes import Group, joined
from pyrovae.report import write_report
from pyrovae.report.folder import UNFINISHED
from pyrovae.training.options import ENGINES, choose_device


def evaluate_run(argv: Sequence[str]) -> None:
    """Report the bounds of a run."""
    parser = Parser(
        prog="pyrovae evaluate",
        usage="pyrovae evaluate RUN [options]",
        description="Report the ELBO of a run beside its IWAE bounds, on its test data, and how far they can be "
        "trusted, on one HTML page.",
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
    parser.add_record("checks, on the first of the data", Checks)
    add_run(parser)
    options = parser.options(argv)
    with joined(options["device"]) as processes, ExitStack() as locks:
        _evaluate(options, processes, locks)


def _evaluate(options: dict[str, Any], processes: Group, locks: ExitStack) -> None:
    """Evaluate in this process, or in one of several, of which the first goes on to the checks and the report."""
    run = load_run(options)
    processes.from_first(lambda: locks.enter_context(run.folder.lock("evaluated")))
    vae = run.vae.to(choose_device(options["device"]))
    data = processes.first_alone(lambda: data_of(run, options))
    if processes.first and fingerprint(data.train.stored) != run.config["data"]["hash"]:
        sys.stdout.write("note: these are not the data that the run was trained on\n")
    split = getattr(data, options["split"])
    split = split if options["num_data"] is None else split.first(options["num_data"])
    checks = Checks(**{name: options[name] for name in Checks.__dataclass_fields__})
    try:
        evaluation = evaluate(
            vae.model,
            vae.guide,
            split,
            ks=tuple(options["ks"]),
            checks=checks if options["checks"] == "true" and processes.first else None,
            batch_size=options["batch_size"],
            seed=options["seed"],
            device=options["device"],
            engine=options["engine"],
            journal=run.folder.path_of(UNFINISHED),
        )
    except KeyboardInterrupt:
        if processes.first:
            sys.stderr.write("\nTo go on: the same command again\n")
        raise
    if not processes.first:
        return
    sys.stdout.write(f"{evaluation}\n")
    vae.cpu()
    folder = write_report(
        run.folder.path,
        evaluation,
        model=vae.model,
        guide=vae.guide,
        data=split,
        history=run.history,
        settings=run.config,
    )
    sys.stdout.write(f"\nreport: {folder / 'index.html'}\n")
