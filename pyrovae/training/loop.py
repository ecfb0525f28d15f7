"""The loop over epochs: steps, what is watched between them, and when to stop."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyrovae.data.loader import Loader
from pyrovae.objectives import Objective
from pyrovae.programs import ModelGuide
from pyrovae.results import Epoch, History
from pyrovae.runtime.context import forked_random, stream_seed, validation, values_kept
from pyrovae.runtime.distributed import group
from pyrovae.runtime.progress_bar import Advance, progress
from pyrovae.training.checkpoint import Checkpoint, Progress
from pyrovae.training.config import Training
from pyrovae.training.engine import make_step
from pyrovae.training.feed import OwnRows, Resident
from pyrovae.training.leaves import require_leaves
from pyrovae.training.loss import StepLoss
from pyrovae.training.optimizer_state import check_state
from pyrovae.training.prefetched import Prefetched
from pyrovae.training.shared_noise import row_axes
from pyrovae.training.state import require_same, restore, snapshot
from pyrovae.training.step import EagerStep, MakeOptimizer, Step, make_optimizer_of
from pyrovae.training.validation_bounds import compute_bounds, report_early_statistics

logger = logging.getLogger("pyrovae")

STEPS_BETWEEN_READS = 200  # reading a loss makes the host wait for the device
CHECKED_STEPS = 500  # of the first epoch, which are run eagerly under Pyro's checks before anything is recorded


class DivergenceError(ValueError):
    """Training met a loss that is not finite."""


class Loop:
    """Epochs of steps, with what is watched between them."""

    def __init__(
        self,
        programs: ModelGuide,
        rows: list[Loader],
        objective: PyroELBO,
        training: Training,
        device: torch.device,
        make_optimizer: MakeOptimizer,
        *,
        prefetched: bool = False,
    ) -> None:
        leaves = require_leaves(programs.modules, programs.params)
        self.programs, self.objective, self.training, self.device = programs, objective, training, device
        self.leaves = leaves
        self.train = rows[0]
        self.watched = rows[1] if len(rows) > 1 else None
        self.optimizer = make_optimizer_of(make_optimizer, leaves.trained)
        self.checkpoint: Checkpoint | None = None
        self.epochs: tuple[Epoch, ...] = ()
        self.best: dict[str, Tensor] | None = None
        self.best_epoch = 0
        self.best_validation = -math.inf
        self.num_weighted = objective.num_weighted if isinstance(objective, Objective) else 1
        self.watched_bound = "elbo" if self.num_weighted == 1 else f"L_{self.num_weighted}"
        self.bound_name = self.watched_bound.replace("elbo", "ELBO")
        self.feed = (
            OwnRows(programs, self.train, device)
            if programs.draws_rows
            else (Prefetched if prefetched else Resident)(programs, self.train, training.batch_size, device)
        )
        self.steps_per_epoch = math.ceil(len(self.train) / self.feed.batch_size)
        self.group = group()
        loss = StepLoss(programs, objective, self.feed.bind, half=training.precision == "bfloat16")
        self.eager = EagerStep(loss, leaves, self.optimizer, clip_norm=training.clip_norm)
        self.step: Step = make_step(
            loss,
            leaves,
            self.optimizer,
            clip_norm=training.clip_norm,
            engine=training.engine,
            num_steps=training.epochs * self.steps_per_epoch,
        )

    def progress(self) -> Progress:
        """Return where training stands."""
        return Progress(
            epochs=self.epochs,
            values=self._snapshot(),
            optimizer=self.optimizer.state_dict(),
            best=self.best,
            best_epoch=self.best_epoch,
            best_validation=self.best_validation,
        )

    def restore(self, progress: Progress) -> None:
        """Take up where training stood."""
        state = check_state(self.optimizer, progress.optimizer)
        for values in (progress.values, progress.best):
            if values is not None:
                require_same(self.programs.modules, self.programs.params, values)
        self._restore(progress.values)
        self.optimizer.load_state_dict(state)
        self.epochs, self.best = progress.epochs, progress.best
        self.best_epoch, self.best_validation = progress.best_epoch, progress.best_validation
        if self.training.patience is None:  # early stopping was switched off: the last weights are kept from here on
            self.best, self.best_epoch = None, len(self.epochs)

    def run(self, on_epoch: Callable[[Epoch], bool | None] | None, *, show_progress: bool) -> History:
        """Go through the epochs that are left."""
        try:
            return self._run(on_epoch, show_progress=show_progress)
        finally:
            self.step.release()  # also where an error keeps this alive: with a graph of theirs NCCL's groups never end

    def _run(self, on_epoch: Callable[[Epoch], bool | None] | None, *, show_progress: bool) -> History:
        why = self._done()
        checked = not self.epochs
        total = (self.training.epochs - len(self.epochs)) * self.steps_per_epoch
        done = 0
        with progress("training", total, show_progress=show_progress and self.group.first, unit="steps") as advance:
            while why is None:
                epoch = self._epoch(len(self.epochs) + 1, advance, done, checked=checked)
                checked = False
                done += self.steps_per_epoch
                self.epochs = (*self.epochs, epoch)
                self._watch(epoch)
                if self.checkpoint is not None:
                    self.checkpoint.save(self.progress())
                why = self._done()
                if on_epoch is not None and self.group.from_first(functools.partial(on_epoch, epoch)):
                    why = f"stopped by on_epoch after epoch {epoch.epoch}"
        if self.best is not None:
            self._restore(self.best)
        return History(self.epochs, self.best_epoch, why)

    def _done(self) -> str | None:
        """Return why training ends here, or None if it goes on."""
        patience = self.training.patience
        if patience is not None and len(self.epochs) - self.best_epoch >= patience:
            return f"stopped early: no better validation {self.bound_name} since epoch {self.best_epoch}"
        return f"all {self.training.epochs} epochs done" if len(self.epochs) >= self.training.epochs else None

    def _snapshot(self) -> dict[str, Tensor]:
        return snapshot(self.programs.modules, self.programs.params)

    def _restore(self, values: dict[str, Tensor]) -> None:
        restore(self.programs.modules, self.programs.params, values)

    def _watch(self, epoch: Epoch) -> None:
        """Note whether an epoch is the one whose weights are kept."""
        if self.training.patience is None:
            self.best_epoch = epoch.epoch
        elif epoch.validation is not None and epoch.validation[self.watched_bound] > self.best_validation:
            self.best_epoch, self.best_validation = epoch.epoch, epoch.validation[self.watched_bound]
            self.best = self._snapshot()

    def _epoch(self, number: int, advance: Advance, done: int, *, checked: bool) -> Epoch:
        """Go through the training data once."""
        started = time.perf_counter()
        rate = self.training.rate(number)
        for of_parameters in self.optimizer.param_groups:
            of_parameters["lr"] = rate
        if isinstance(self.objective, Objective):
            self.objective.step = (number - 1) * self.steps_per_epoch
        known = isinstance(self.objective, Objective)
        sums = torch.zeros(3, dtype=torch.float64)
        unread: list[tuple[Tensor, int]] = []
        seen = 0
        stream = stream_seed(self.training.seed, "epoch", number)
        feeding = contextlib.closing(self.feed.batches())
        with forked_random(stream, self.device), feeding as batches, contextlib.ExitStack() as checks:
            checks.enter_context(validation(enabled=checked))
            step = self.eager if checked else self.step
            for index, inputs in enumerate(batches):
                if checked and index == CHECKED_STEPS and type(self.step) is not EagerStep:
                    checks.close()
                    checks.enter_context(validation(enabled=False))
                    step = self.step
                count = self.feed.count(*inputs)
                try:
                    unread.append((step(*self._local_shard(inputs, count)), count))
                except ValueError as error:  # of Pyro's checks, which may meet a NaN before the loss has been read
                    if unread:
                        self._read(unread, number, index - len(unread) + 1)
                        self._check_again(inputs, number, index + 1, error)
                    raise
                if len(unread) == STEPS_BETWEEN_READS or index == self.steps_per_epoch - 1:
                    sums += self._read(unread, number, index - len(unread) + 2)
                    seen += sum(count for _, count in unread)
                    unread = []
                    loss, reconstruction, kl = (sums / seen).tolist()
                    bound = reconstruction - kl if known and self.num_weighted == 1 else -loss
                    words = f"{self.bound_name} {bound:.2f}  reconstruction {reconstruction:.2f}  KL {kl:.2f}"
                    advance(done + index + 1, words)
        self._check_end(number)
        if checked:
            report_early_statistics(self.programs.modules)
        loss, reconstruction, kl = (sums / seen).tolist()
        return Epoch(
            epoch=number,
            steps=number * self.steps_per_epoch,
            elbo=reconstruction - kl if known else -loss,
            reconstruction=reconstruction if known else None,
            kl=kl if known else None,
            objective=-loss,
            validation=None if self.watched is None else self._validate(self.watched, number, checked=checked),
            learning_rate=rate,
            seconds=time.perf_counter() - started,
        )

    def _local_shard(self, inputs: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
        """Return the part of a minibatch that this process has: all of it, unless several share it."""
        if self.group.size == 1:
            return inputs
        self.step.loss.share = share = self.group.local_shard(count)
        return self.feed.part(inputs, share.start, share.stop)

    def share(self) -> None:
        """Prepare for sharing minibatches with other processes, where there are such.

        Raises:
            ValueError: if the pair, or the draws that it makes, cannot be shared.

        """
        if self.group.size == 1:
            return
        self.group.copy_from_first(self.leaves.all)
        with values_kept(self.leaves.all):
            self.step.loss.row_axes = row_axes(lambda count: self.step.loss(*self.feed.few(count)), self.device)
        batch_norm = torch.nn.modules.batchnorm._BatchNorm
        if any(isinstance(part, batch_norm) for module in self.programs.modules for part in module.modules()):
            logger.warning("batch normalization sees the part of a minibatch that its process has")
        if getattr(self.objective, "free_bits", 0):
            logger.warning("free bits hold for the average over the part of a minibatch that a process has")

    def _read(self, unread: list[tuple[Tensor, int]], epoch: int, first_step: int) -> Tensor:
        """Fetch losses from the device and return their sums over data; the only place where the host waits."""
        values = torch.stack([value for value, _ in unread]).cpu().double()
        finite = values.isfinite().all(1)
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            names = ("loss", "reconstruction", "KL")
            terms = [name for name, value in zip(names, values[bad].tolist(), strict=True) if not math.isfinite(value)]
            raise self._diverged(epoch, first_step + bad, terms[-1])
        counts = torch.tensor([count for _, count in unread], dtype=torch.float64)
        return counts @ values

    def _diverged(self, epoch: int, step: int, term: str) -> DivergenceError:
        kept = (
            f"the run folder {self.checkpoint.folder.path} holds the weights of epoch {epoch - 1}"
            if self.checkpoint
            else "give fit a folder to keep the weights of the last good epoch"
        )
        return DivergenceError(
            f"training stopped in epoch {epoch} at its step {step}: {term} is not finite; lower the learning rate "
            f"({self.training.rate(epoch):g}) or set clip_norm; {kept}"
        )

    @torch.no_grad()
    def _check_again(self, inputs: tuple[Tensor, ...], epoch: int, step: int, error: ValueError) -> None:
        """Raise that training diverged if that is why Pyro's checks failed: without them the loss is not finite."""
        with validation(enabled=False):
            loss, _ = self.step.loss(*self._local_shard(inputs, self.feed.count(*inputs)))
        if not loss.isfinite():
            raise self._diverged(epoch, step, "the loss") from error

    def _check_end(self, epoch: int) -> None:
        """Refuse to go on with parameters that the last step made NaN, which no loss has shown yet."""
        if torch.stack([parameter.isnan().any() for parameter in self.leaves.trained]).any():
            raise self._diverged(epoch, self.steps_per_epoch, "a parameter")

    def _validate(self, watched: Loader, epoch: int, *, checked: bool) -> dict[str, float]:
        """Return the ELBO, its terms and the bound that training maximizes on the validation data."""
        reconstruction, kl, bound = compute_bounds(
            self.programs,
            watched,
            num_weighted=self.num_weighted,
            seed=self.training.seed,
            device=self.device,
            checked=checked,
        )
        if not math.isfinite(reconstruction - kl):
            raise self._diverged(epoch, self.steps_per_epoch, "the validation ELBO")
        show_progress = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        return show_progress if self.num_weighted == 1 else show_progress | {self.watched_bound: bound}
