"""The command line: ``pyrovae train | evaluate | compare | generate | sweep``, thin over the library."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence

from pyrovae.cli.compare_command import compare
from pyrovae.cli.evaluate_command import evaluate
from pyrovae.cli.generate_command import generate
from pyrovae.cli.sweep_command import sweep
from pyrovae.cli.terminal import error_line, print_error, print_text
from pyrovae.cli.train_command import train
from pyrovae.runtime.environment import versions

USAGE = """usage: pyrovae COMMAND [options]

Variational autoencoders as Pyro programs, judged by bounds on log p(x).

  pyrovae train       fit a VAE and save it in a run folder
  pyrovae evaluate    report the ELBO and IWAE bounds of a run, and how reliable they are
  pyrovae compare     put evaluated runs side by side, with paired differences
  pyrovae generate    draw data from a run
  pyrovae sweep       train, evaluate and compare a run for each combination of some options

pyrovae COMMAND --help lists the options, pyrovae --version prints the versions of the packages.
A first round, without any network:

  pyrovae train --epochs 100
  pyrovae evaluate runs/digits-1
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 2 after an error, 130 after Ctrl-C.

    A sweep returns 1 if some of its runs failed.
    """
    code = 0
    try:
        try:
            code = _run(list(sys.argv[1:] if argv is None else argv))
        except KeyboardInterrupt:
            print_error("pyrovae: interrupted; files that were written stay\n")
            return 130
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has stopped; the flush at the end of Python must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _run(words: list[str]) -> int:
    """Run the command that the first word names and return the exit code."""
    commands: dict[str, Callable[[list[str]], int | None]]
    commands = {"train": train, "evaluate": evaluate, "compare": compare, "generate": generate, "sweep": sweep}
    if not words or words[0] in ("-h", "--help", "help"):
        print_text(USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        print_text(json.dumps(versions(), indent=2) + "\n")
        return 0
    if words[0] not in commands:
        return _fail(f"there is no command {words[0]!r}; choose from {', '.join(commands)}")
    try:
        return commands[words[0]](words[1:]) or 0
    except Exception as error:
        return _fail(error_line(error))


def _fail(message: str) -> int:
    """Print an error and return its exit code."""
    print_error(f"pyrovae: error: {message}\n")
    return 2
