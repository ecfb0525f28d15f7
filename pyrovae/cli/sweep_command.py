"""The command ``pyrovae sweep``."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pyrovae.cli.data_options import saved_options
from pyrovae.cli.evaluate_command import add_bounds, choose_split, evaluation_options, run_evaluation
from pyrovae.cli.parser import Parser
from pyrovae.cli.terminal import error_line, file_name, print_error, print_text, text_width, write_file
from pyrovae.cli.train_command import absolute_data, add_training, prepare, run_training
from pyrovae.report import compare, rate_distortion, read_report
from pyrovae.report.report_files import report_names
from pyrovae.report.style import to_png
from pyrovae.results import Evaluation
from pyrovae.runtime.distributed import Group, init_distributed
from pyrovae.training.checkpoint import CONFIG, TRAINER, parse_config
from pyrovae.training.run_folder import RunFolder

LARGEST = 200  # runs
FOLDER = "runs/sweep"
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
EVALUATION = ("split", "num_data", "ks", "checks")  # options of evaluation
FREE = {"folder", "device", "engine", "data.root", "data.download"}  # options that may change when a sweep is resumed


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    folder: Path
    setting: dict[str, str]  # value of each option that varies
    training: dict[str, Any]  # options of training
    evaluation: dict[str, Any]  # options of evaluation
    is_finished: bool  # whether the run has its report


def sweep(argv: Sequence[str]) -> int:
    """Train, evaluate and compare a run for each combination of options; return 1 if some of them failed."""
    parser = _parser()
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        parser.exit()
    values = {"--folder": {FOLDER: [f"--folder={FOLDER}"]}} | parser.values(argv)  # not the folder of a --config
    varying = {name.removeprefix("--"): list(texts) for name, texts in values.items() if len(texts) > 1}
    if "seed" in varying:  # last in names, which are shortened where runs are grouped by seed
        varying["seed"] = varying.pop("seed")
    count = math.prod(map(len, varying.values()))
    for name in ("folder", "allow", *EVALUATION):
        if name in varying:
            raise ValueError(f"all runs of a sweep have the same --{name}, but received {len(varying[name])} values")
    if count > LARGEST:
        raise ValueError(f"a sweep has at most {LARGEST} runs, but these options make {count:,}; give fewer values")
    if not varying:
        raise ValueError("a sweep needs several values of an option, such as --latent_dim 2 8 32")
    ends = [name.partition(".")[2] if name.partition(".")[0] in parser.roles else name for name in varying]
    short = {name: end if end and ends.count(end) == 1 else name for name, end in zip(varying, ends, strict=True)}
    runs = []
    for texts in itertools.product(*values.values()):
        chosen = dict(zip(values, texts, strict=True))
        words = [word for name, text in chosen.items() for word in values[name][text]]
        runs.append(_run(parser, words, {short[name]: chosen[f"--{name}"] for name in varying}))
    finished = sum(run.is_finished for run in runs)
    options = "; ".join(f"{name}: {', '.join(texts)}" for name, texts in varying.items())
    print_text(f"{count} runs in {runs[0].folder.parent}, {finished} of them finished\n{options}\n")
    with init_distributed(runs[0].training["device"]) as group:
        for run in runs:
            if not run.is_finished:  # raise errors of options, data and models before the first run is trained
                choose_split(prepare(parser, run.training, group)[1], run.evaluation)
        failed = [run for number, run in enumerate(runs, 1) if not _finish(parser, run, f"{number} of {count}", group)]
        if group.first and len(failed) < count:
            _write([run for run in runs if run not in failed])
    if failed:
        names = ", ".join(run.folder.name for run in failed)
        print_error(f"pyrovae: {len(failed)} of {count} runs failed: {names}; the same command tries them again\n")
    return 1 if failed else 0


def _parser() -> Parser:
    parser = Parser(
        prog="pyrovae sweep",
        usage="pyrovae sweep --OPTION VALUE VALUE ... [options]",
        description="Train and evaluate a VAE for each combination of values, one after another, and compare them in "
        "one table and one picture. Each option of data, model, objective and training takes several values, such as "
        "--latent_dim 2 8 32 --seed 0 1. An option that takes a list is repeated, once for each list: "
        "--encoder.hidden 200 --encoder.hidden 200 200. Each run has a folder, such as "
        "runs/sweep/latent_dim-2_seed-0. The same command again resumes the sweep and skips finished runs.",
    )
    group = parser.add_argument_group("sweep")
    parser.add(group, "folder", "folder of runs, table and picture", default=FOLDER, metavar="DIR")
    add_training(parser, group)
    group = parser.add_argument_group("evaluation of each run")
    add_bounds(parser, group)
    text = "run the checks of pyrovae evaluate"
    parser.add(group, "checks", text, default="false", choices=("true", "false"))
    return parser


def _run(parser: Parser, words: Sequence[str], setting: dict[str, str]) -> SweepRun:
    """Return the run of some words of a command line."""
    options = absolute_data(parser.options(words))
    training = {name: value for name, value in options.items() if name not in EVALUATION}
    name = file_name("_".join(f"{option}-{text or 'none'}" for option, text in setting.items()))
    path = Path(options["folder"]) / name
    words = [f"--{name}={options[name]}" for name in ("split", "num_data", "checks") if options[name] is not None]
    evaluation = evaluation_options(["RUN", *words, "--ks", *map(str, options["ks"])])
    evaluation |= {"run": str(path), "allow": options["allow"], "device": options["device"]}
    begun = TRAINER in RunFolder(path)
    if begun:
        saved = saved_options(parse_config(RunFolder(path).read(CONFIG)), path)
        for name, value in parser.to_save(training).items():
            if name not in FREE and saved.get(name) != value:
                raise ValueError(
                    f"the run {path} was made with --{name} {saved.get(name)}, but received {value}; choose another "
                    "--folder, or remove the run"
                )
    training |= {"folder": str(path), "resume": str(path) if begun else None}
    return SweepRun(path, setting, training, evaluation, evaluation["report"] in report_names(path))


def _finish(parser: Parser, run: SweepRun, number: str, group: Group) -> bool:
    """Train and evaluate a run as far as it is not finished; return whether that was possible."""
    if run.is_finished:
        return True
    print_error(f"run {number}: {run.folder.name}\n")
    try:
        run_training(parser, run.training, group, output=_no_output)
        run_evaluation(run.evaluation, output=_no_output)
    except KeyboardInterrupt:
        print_error("\nTo resume the sweep: the same command again\n")
        raise
    except Exception as error:
        print_error(f"pyrovae: error: {run.folder.name}: {error_line(error)}\n")
        return False
    return True


def _no_output(text: str) -> None:
    """Leave out the results of one run, which the table at the end has."""


def _write(runs: Sequence[SweepRun]) -> None:
    """Print and write the table of all runs, and draw their picture if they are comparable."""
    name, by_seed = runs[0].evaluation["report"], len(runs[0].setting) > 1
    comparison = compare([run.folder for run in runs], blocks=True, name=name, group_seeds=by_seed)
    table, picture = (runs[0].folder.parent / file for file in ("comparison.txt", "rate_distortion.png"))
    write_file(table, f"{comparison}\n".encode(), "--folder")
    print_text(f"\n{comparison.to_text(text_width())}\n\ntable: {table}\n")
    if len(comparison.blocks) > 1:
        print_text("no picture: not all runs may be compared\n")
        return
    points = _points([(run.setting, read_report(run.folder, name=name)) for run in runs])
    write_file(picture, to_png(rate_distortion(points)), "--folder")
    print_text(f"picture: {picture}\n")


def _points(runs: Sequence[tuple[dict[str, str], Evaluation]]) -> dict[str, Any]:
    """Return rates and distortions, means over training seeds, on curves along an option whose values are numbers.

    This option is beta if it varies, otherwise the one with the most values.
    """
    texts = {name: {setting[name] for setting, _ in runs} for name in runs[0][0]}
    shown = [name for name in texts if name != "seed"] or ["seed"]
    numbers = [name for name in shown if all(NUMBER.fullmatch(text) for text in texts[name])]
    along = max(numbers, key=lambda name: (name == "beta", len(texts[name])), default="")
    runs = sorted(runs, key=lambda run: float(run[0][along])) if along else runs
    pairs: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for setting, evaluation in runs:
        rate, reconstruction = evaluation.kl.value, evaluation.reconstruction.value
        if rate is not None and reconstruction is not None:
            label = ", ".join(f"{option} {setting[option]}" for option in shown if option != along)
            point = setting.get(along, label) if label else f"{along} {setting[along]}"
            pairs.setdefault(label, {}).setdefault(point, []).append((rate, -reconstruction))
    means = {
        label: {point: tuple(map(fmean, zip(*values, strict=True))) for point, values in curve.items()}
        for label, curve in pairs.items()
    }
    if along:
        return {f"{label}, by {along}": curve for label, curve in means.items()}
    return {label: curve[label] for label, curve in means.items()}
