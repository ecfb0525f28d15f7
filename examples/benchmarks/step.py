"""Cost of one training step, compared with other packages and with its matrix products alone.

    python examples/benchmarks/step.py                          every size of network and minibatch
    python examples/benchmarks/step.py --only 784-400-20/128    one of each

prints the machine, then one row for each contender: milliseconds per step, and its time as a multiple of stock Pyro
and of the floor. Last come the ratios with a goal, and the parts of the time of the captured step.

A step is loss, gradients and an update by Adam with learning rate 1e-3, in float32, of a VAE with tanh layers,
Bernoulli pixels, a N(0, I) prior, a diagonal normal guide and the closed form of their KL; 784-400-20 has one hidden
layer of 400 units and 20 latent dimensions. Contenders start at the same weights, and their losses there must agree
before the timing. Only ours clamps the log-variance.

With x binarized before the step, all steps use one minibatch of zeros and ones. With x binarized within the step, the
data are 10,000 rows of bytes; each step gathers the next rows of a fixed permutation and draws their pixels.

The floor has the products with the weights of each layer not adjacent to z: the forward product, the gradient of the
weights, and the gradient of the input except for the first layer. There are five with one hidden layer, and eleven with
two. They write into reused memory. If x is binarized within the step, the floor gathers and draws too.

Every contender runs in a process of its own, so that allocators, thread pools and switches are separate. Contenders
take turns of some steps while the others wait. The table has medians over the rounds, of the times and of the ratios
within a round. The last lines give the share of the cores that other processes used, which slow some contenders more
than others. NumPyro and Pythae are measured if they are installed.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import pyro
import torch
from contenders import (
    CAPTURED,
    COMPILED,
    CONTENDERS,
    EAGER,
    FLOOR,
    FUSED,
    SCAN,
    STOCK,
    UNCHECKED,
    UNFUSED,
    Contender,
    make_case,
)

parser = argparse.ArgumentParser()
parser.add_argument("--only", default="", help="rows with this in block/network/batch, such as before/784-400-20/128")
parser.add_argument("--rounds", type=int, default=7, help="number of turns of each contender")
parser.add_argument("--threads", type=int, default=torch.get_num_threads())
parser.add_argument("--device", default="cpu", help="cpu or cuda, for all but NumPyro, which takes what jax has")
parser.add_argument("--smoke", action="store_true", help="run for less than a minute, as a test")
parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
parser.add_argument("--kernels", action="store_true", help=argparse.SUPPRESS)
options = parser.parse_args()

shapes = ["64-16-4"] if options.smoke else ["784-400-20", "784-200-200-50", "784-1000-1000-100"]
batch_sizes = [8] if options.smoke else [20, 128, 1024]
rounds, num_rows = (1, 100) if options.smoke else (options.rounds, 10_000)
turn_milliseconds = 10 if options.smoke else 150  # length of a turn of stock Pyro; others take as many steps
pause = 0.02  # seconds between turns, in which idle threads fall asleep
contenders = dict(CONTENDERS)
if options.smoke:  # one contender for each switch, and no compiler
    for name in (UNCHECKED, UNFUSED, COMPILED):
        del contenders[name]
that_gather = (STOCK, CAPTURED, FLOOR) if options.smoke else (STOCK, FUSED, EAGER, CAPTURED, FLOOR)


def work(name: str) -> None:
    """Run one contender: take the turns that the standard input asks for, and print their times."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries goes to the standard error
    torch.set_num_threads(options.threads)
    cell, contender = name.rsplit("/", 1)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    if options.kernels:
        from torch._inductor import config

        config.cpp.enable_kernel_profile = True
    try:
        found = contenders[contender](make_case(cell, num_rows=num_rows, device=options.device))
    except ImportError as error:
        answer(missing=str(error))
        return
    for _ in range(3):  # compile, and trace the second step of ours
        found.turn(1)
    answer(device=found.device)
    for line in sys.stdin:
        question = json.loads(line)
        if "profiled" in question:
            answer(parts=profile(found, question["profiled"]))
            continue
        if "draws" in question:
            answer(losses=[found.rewind() or found.turn(1) for _ in range(question["draws"])])
            continue
        found.turn(1)  # warm up memory and threads
        started = time.perf_counter()
        found.turn(question["steps"])
        answer(milliseconds=1000 * (time.perf_counter() - started) / question["steps"])


def profile(contender: Contender, steps: int) -> dict[str, float]:
    """Return the milliseconds per step of matrix products, Adam's kernel, compiled loops and the remainder."""
    kinds = {"aten::mm": "matrix products", "aten::addmm": "matrix products", "aten::_fused_adam_": "Adam's kernel"}
    loops, rest = "loops over elements", "Python and what is between"
    started = time.perf_counter()
    with torch.profiler.profile() as recorded:
        contender.turn(steps)
        total = 1000 * (time.perf_counter() - started) / steps
    parts = dict.fromkeys((*kinds.values(), loops, rest), 0.0)
    for event in recorded.key_averages():
        kind = loops if "cpp_fused" in event.key else kinds.get(event.key)
        if kind is not None:
            parts[kind] += event.self_cpu_time_total / 1000 / steps
    parts[rest] = total - sum(parts.values())
    return parts


class Worker:
    """A contender in a process of its own."""

    def __init__(self, cell: str, name: str, *, kernels: bool = False) -> None:
        self.name = name
        command = [sys.executable, __file__, "--worker", f"{cell}/{name}", "--threads", str(options.threads)]
        command += ["--device", options.device, *["--smoke"] * options.smoke, *["--kernels"] * kernels]
        threads = {"OMP_NUM_THREADS": str(options.threads), "NPROC": str(options.threads)}  # NPROC is for XLA
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | threads | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"every contender answers, but {self.name!r} has ended; its error is above")
        return json.loads(line)

    def ask(self, **question: int) -> Any:
        """Return the answer to a question, while no other contender runs."""
        time.sleep(pause)
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return next(iter(self.answer().values()))

    def end(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


if options.worker:
    work(options.worker)
    sys.exit()

cpu = platform.processor() or platform.machine()
if Path("/proc/cpuinfo").exists():
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text() + "model name: " + cpu)[1]
print(f"{cpu}, {options.threads} threads of {os.cpu_count()} cores, {platform.system()}")
print(f"Python {platform.python_version()}, torch {torch.__version__}, Pyro {pyro.__version__}, {date.today()}")
for package in ("jax", "numpyro", "pythae"):
    with suppress(importlib.metadata.PackageNotFoundError):
        print(f"{package} {importlib.metadata.version(package)}")

goals = {  # of the times of two contenders, with x binarized before, on 784-400-20/128
    ("CPU", EAGER, STOCK): 0.65,
    ("CPU", CAPTURED, STOCK): 0.44,
    ("CPU", CAPTURED, FUSED): 0.90,
    ("CPU", CAPTURED, SCAN): 1.15,
    ("CPU", CAPTURED, FLOOR): 1.40,
    ("GPU", CAPTURED, STOCK): 0.05,
    ("GPU", CAPTURED, SCAN): 1.00,
}
on = "CPU" if options.device == "cpu" else "GPU"
RECIPE, RECIPE_STEPS = "before/784-200-200-50/20", 9_840_000  # 3280 epochs of 3000 steps, arXiv:1509.00519
ratios: dict[tuple[str, str], float] = {}
missing: dict[str, str] = {}
apart: list[tuple[float, float]] = []
taken: list[float] = []
parts: dict[str, float] = {}
floor_milliseconds: list[float] = []
recipe_milliseconds: list[float] = []


def seconds_of_others(workers: list[Worker]) -> float:
    """Return the CPU seconds of other processes since the machine started."""
    times = psutil.cpu_times()._asdict()
    everything = sum(
        seconds for kind, seconds in times.items() if kind not in ("idle", "iowait", "guest", "guest_nice")
    )
    return everything - sum(sum(psutil.Process(worker.process.pid).cpu_times()[:2]) for worker in workers)


def check_losses(workers: list[Worker], cell: str) -> None:
    """Require mean losses at the same weights to agree within the noise."""
    draws = 8 if options.smoke else max(4, 1280 // int(cell.rsplit("/", 1)[1]))
    found = torch.tensor([worker.ask(draws=draws) for worker in workers], dtype=torch.float64)
    error = float((found.var(-1).mean() / draws).sqrt())
    away = found.mean(-1) - found.mean(-1).median()
    for worker, difference in zip(workers, away, strict=True):
        assert abs(difference) < 6 * error, f"{cell}: the loss of {worker.name} is {difference:+.2f} nats from others'"
    apart.append((float(away.abs().max()), error))


def measure(cell: str) -> None:
    """Run the contenders of one cell and print their rows."""
    block, shape, batch_size = cell.split("/")
    named = [Worker(cell, name) for name in contenders if block == "before" or name in that_gather]
    devices = {}
    for worker in named:
        hello = worker.answer()
        if "missing" in hello:
            missing[worker.name] = hello["missing"]
        else:
            devices[worker.name] = hello["device"]
    workers = [worker for worker in named if worker.name in devices]
    check_losses([worker for worker in workers if worker.name != FLOOR], cell)
    steps = max(2, round(turn_milliseconds / workers[0].ask(steps=3)))
    found: dict[str, list[float]] = {worker.name: [] for worker in workers}
    started, before = time.perf_counter(), seconds_of_others(workers)
    for number in range(rounds + 1):  # in the first the scan compiles
        for worker in workers:
            milliseconds = worker.ask(steps=steps)
            if number:
                found[worker.name].append(milliseconds)
    elapsed = time.perf_counter() - started
    taken.append((seconds_of_others(workers) - before) / elapsed / os.cpu_count())
    for worker in named:
        worker.end()
    if cell == "before/784-400-20/128" and options.device == "cpu":
        profiled = Worker(cell, CAPTURED, kernels=True)  # with names for its loops, which cost time
        profiled.answer()
        parts.update(profiled.ask(profiled=50))
        profiled.end()
    for name, device in devices.items():
        of = {
            other: statistics.median(a / b for a, b in zip(found[name], found[other], strict=True)) for other in found
        }
        ms = statistics.median(found[name])
        print(
            f"| {device} | {block} | {shape} | {batch_size} | {name} | {ms:.3f} | {of[STOCK]:.2f} | {of[FLOOR]:.2f} |",
            flush=True,
        )
        if cell == RECIPE and name == CAPTURED:
            recipe_milliseconds[:] = [ms]
        if cell == "before/784-400-20/128":
            floor_milliseconds[:] = [statistics.median(found[FLOOR])]
            ratios.update({(name, other): ratio for other, ratio in of.items() if devices[other] == device})


print(
    "\n| device | x binarized | network | batch | contender | ms per step | of stock Pyro | of the floor |"
    "\n|---|---|---|---|---|---|---|---|"
)
for cell in ("/".join(map(str, parts)) for parts in itertools.product(("before", "within"), shapes, batch_sizes)):
    if options.only in cell:
        measure(cell)
for name, reason in missing.items():
    print(f"\n{name} is not measured: {reason}")
if apart:
    away, error = max(apart)
    print(f"\nLosses at the same weights are {away:.2f} nats or less from their median (standard error {error:.2f})")
    print(
        f"Other processes took {max(taken):.0%} of the cores or less; times are to be trusted where that is near zero"
    )
if ratios:
    print("\nGoals, with x binarized before, 784-400-20, batch 128:")
    for (kind, name, other), goal in goals.items():
        ratio = ratios.get((name, other)) if kind == on else None
        print(
            f"{kind}: {name} / {other}: {'not measured' if ratio is None else f'{ratio:.2f}'}, goal at most {goal:.2f}"
        )
if recipe_milliseconds:
    minutes = recipe_milliseconds[0] * RECIPE_STEPS / 60_000
    print(f"\nThe {RECIPE_STEPS:,} steps of {RECIPE} would take {CAPTURED} {minutes:.0f} minutes on this {on}")
    print(f"GPU: {f'{minutes:.0f}' if on == 'GPU' else 'not measured'}, goal at most 15 minutes")
if parts:
    show_progress = ", ".join(f"{kind} {milliseconds:.2f}" for kind, milliseconds in parts.items())
    print(f"\n{CAPTURED}, ms per step under a profiler: {show_progress}")
    needed = sum(list(parts.values())[:-1])
    print(f"All but the last are {needed:.2f}, where the whole of the floor took {floor_milliseconds[0]:.2f}")
