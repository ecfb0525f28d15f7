"""Loop over epochs: steps, validation, checkpoints, and when to stop."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyrovae.data.loader import Loader
from pyrovae.objectives import IWAE, Objective
from pyrovae.programs import ModelGuide, run
from pyrovae.programs.values import restore, snapshot
from pyrovae.results import Epoch, History
from pyrovae.runtime.context import forked_random, module_mode, stream_seed, validation
from pyrovae.runtime.distributed import group
from pyrovae.runtime.progress_bar import Advance, progress
from pyrovae.training.checkpoint import Checkpoint, Progress, fitting_state
from pyrovae.training.config import Training
from pyrovae.training.step import MakeOptimizer, Step
from pyrovae.training.validation_bounds import compute_bounds

logger = logging.getLogger("pyrovae")

STATISTICS_DATA = 2048  # training data from which statistics of batch normalization are estimated
STEPS_BETWEEN_READS = 200  # reading a loss makes the host wait for the device
TERMS = ("loss", "reconstruction", "KL")


class DivergenceError(ValueError):
    """Training met a loss that is not finite."""


class Loop:
    """Epochs of steps.

    Args:
        programs: structure of model and guide.
        loaders: training data, and validation data if there are any.
        objective: an objective with a differentiable loss.
        training: settings.
        make_optimizer: makes the optimizer of the parameters.
        device: device of training.
        on_host: whether the data are in host memory, so that minibatches are copied one by one.

    """

    def __init__(
        self,
        programs: ModelGuide,
        loaders: Sequence[Loader],
        objective: PyroELBO,
        training: Training,
        make_optimizer: MakeOptimizer,
        device: torch.device,
        *,
        on_host: bool,
    ) -> None:
        self.programs, self.objective, self.training, self.device = programs, objective, training, device
        self.train, self.validation_data = loaders[0], loaders[1] if len(loaders) > 1 else None
        self.on_host = on_host
        self.group = group()
        self.checkpoint: Checkpoint | None = None
        self.state = Progress()
        self.num_weighted = objective.num_weighted if isinstance(objective, Objective) else 1
        self.monitored = "elbo" if self.num_weighted == 1 else f"L_{self.num_weighted}"
        self.bound_name = self.monitored.replace("elbo", "ELBO")
        self.batch_size = min(training.batch_size, len(self.train))
        self.steps_per_epoch = math.ceil(len(self.train) / self.batch_size)
        self.step = Step(
            programs,
            self.train.arguments if on_host else self.train.draw,
            objective,
            make_optimizer,
            clip_norm=training.clip_norm,
            engine=training.engine,
            num_steps=training.epochs * self.steps_per_epoch,
        )
        self.tensors, self.optimizer = self.step.tensors, self.step.optimizer

    def save(self) -> None:
        """Save the state of training, if there is a run folder."""
        if self.checkpoint is not None:
            self.state.values = snapshot(self.programs.modules, self.programs.params)
            self.state.optimizer = self.optimizer.state_dict()
            self.checkpoint.save(self.state)

    def restore(self, state: Progress) -> None:
        """Resume from a state of training.

        Raises:
            ValueError: if it belongs to other parameters or another optimizer.

        """
        optimizer = fitting_state(self.optimizer, state.optimizer)
        restore(self.programs.modules, self.programs.params, state.values)
        self.optimizer.load_state_dict(optimizer)
        self.state = state
        if self.training.patience is None:  # early stopping was switched off: the last weights count from here on
            self.state.best, self.state.best_epoch = None, len(state.epochs)

    def synchronize(self) -> None:
        """Copy all tensors from the main process, if several processes train together."""
        if self.group.size == 1:
            return
        self.group.copy_from_first(self.tensors.all)
        if _normalizations(self.programs.modules):
            logger.warning("batch normalization sees the part of a minibatch that its process has")
        if getattr(self.objective, "free_bits", 0):
            logger.warning("free bits hold for the average over the part of a minibatch that a process has")

    def run(self, on_epoch: Callable[[Epoch], bool | None] | None, *, show_progress: bool) -> History:
        """Train for the remaining epochs."""
        why = self._why_stop()
        first_epoch = len(self.state.epochs)
        total = (self.training.epochs - first_epoch) * self.steps_per_epoch
        show = show_progress and self.group.first
        with progress("training", total, show_progress=show, unit="steps") as advance, contextlib.ExitStack() as stack:
            stack.callback(self.step.release)  # an error may keep this object alive
            while why is None:
                done = (len(self.state.epochs) - first_epoch) * self.steps_per_epoch
                epoch = self._epoch(len(self.state.epochs) + 1, advance, done, checked=not self.state.epochs)
                self.state.epochs = (*self.state.epochs, epoch)
                self._update_best(epoch)
                self.save()
                why = self._why_stop()
                if on_epoch is not None and self.group.from_first(functools.partial(on_epoch, epoch)):
                    why = f"stopped by on_epoch after epoch {epoch.epoch}"
        if self.state.best is not None:
            restore(self.programs.modules, self.programs.params, self.state.best)
        return History(self.state.epochs, self.state.best_epoch, why)

    def _why_stop(self) -> str | None:
        """Return the reason to stop, None to go on."""
        patience = self.training.patience
        if patience is not None and len(self.state.epochs) - self.state.best_epoch >= patience:
            return f"stopped early: no better validation {self.bound_name} since epoch {self.state.best_epoch}"
        return f"all {self.training.epochs} epochs done" if len(self.state.epochs) >= self.training.epochs else None

    def _update_best(self, epoch: Epoch) -> None:
        """Store the weights of an epoch if it is the best one."""
        if self.training.patience is None:
            self.state.best_epoch = epoch.epoch
        elif epoch.validation is not None and epoch.validation[self.monitored] > self.state.best_validation:
            self.state.best_epoch, self.state.best_validation = epoch.epoch, epoch.validation[self.monitored]
            self.state.best = snapshot(self.programs.modules, self.programs.params)

    def _epoch(self, number: int, advance: Advance, done: int, *, checked: bool) -> Epoch:
        """Train on all data once, then validate."""
        started = time.perf_counter()
        learning_rate = self.training.rate(number)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate
        has_terms = isinstance(self.objective, Objective)
        if isinstance(self.objective, Objective):
            self.objective.step = (number - 1) * self.steps_per_epoch
        loss, reconstruction, kl = self._steps(number, advance, done, checked=checked)
        if torch.stack([parameter.isnan().any() for parameter in self.tensors.trained]).any():
            raise self._diverged(number, self.steps_per_epoch, "a parameter")  # no loss has shown it yet
        self._estimate_statistics(number)
        return Epoch(
            epoch=number,
            steps=number * self.steps_per_epoch,
            elbo=reconstruction - kl if has_terms else -loss,
            reconstruction=reconstruction if has_terms else None,
            kl=kl if has_terms else None,
            objective=-loss,
            validation=self._validate(number, checked=checked),
            learning_rate=learning_rate,
            seconds=time.perf_counter() - started,
        )

    def _steps(self, epoch: int, advance: Advance, done: int, *, checked: bool) -> list[float]:
        """Return loss, reconstruction and KL of all training data, nats per datum."""
        sums, seen = torch.zeros(3, dtype=torch.float64), 0
        unread: list[tuple[Tensor, int]] = []
        with self._minibatches(epoch) as minibatches, validation(enabled=checked):
            for index, inputs in enumerate(minibatches):
                count = len(inputs[0])
                inputs, weight = self._local_shard(inputs, count)
                try:
                    unread.append((self.step.update(*inputs, weight=weight, eager=checked), count))
                except ValueError as error:  # from Pyro's checks, which may meet a NaN before the loss is read
                    if unread:
                        self._read(unread, epoch, index - len(unread) + 1)
                        self._raise_if_diverged(inputs, epoch, index + 1, error)
                    raise
                if len(unread) == STEPS_BETWEEN_READS or index == self.steps_per_epoch - 1:
                    sums += self._read(unread, epoch, index - len(unread) + 2)
                    seen += sum(count for _, count in unread)
                    unread = []
                    advance(done + index + 1, self._progress_text(*(sums / seen).tolist()))
        return (sums / seen).tolist()

    def _progress_text(self, loss: float, reconstruction: float, kl: float) -> str:
        is_elbo = isinstance(self.objective, Trace_ELBO) and self.num_weighted == 1
        bound = reconstruction - kl if is_elbo and isinstance(self.objective, Objective) else -loss
        is_bound = is_elbo or isinstance(self.objective, IWAE)  # Renyi's may exceed log p(x)
        name = self.bound_name if is_bound else "objective"
        return f"{name} {bound:.2f}  reconstruction {reconstruction:.2f}  KL {kl:.2f}"

    @contextlib.contextmanager
    def _minibatches(self, epoch: int) -> Iterator[Iterator[tuple[Tensor, ...]]]:
        """Seed the random streams of an epoch, and return the inputs of its steps.

        Processes that train together draw the same order of the data, then noise from a stream of their own.
        """
        seed = self.training.seed
        with forked_random(stream_seed(seed, "epoch", epoch), self.device):
            minibatches = self._shuffled()
            if self.group.size == 1:
                yield minibatches
                return
            with forked_random(stream_seed(seed, "epoch", epoch, "rank", self.group.rank), self.device):
                yield minibatches

    def _shuffled(self) -> Iterator[tuple[Tensor, ...]]:
        """Draw noise and order of the data from torch's default stream, and return the inputs of all steps.

        They are row numbers ``(B,)`` of data on the device, or rows ``(B, ...)`` as stored in host memory, of which the
        step makes the same data. The last minibatch may be smaller.
        """
        order = torch.randperm(len(self.train), device=self.device)
        if self.on_host:
            tensors, batches = self.train.stored_rows(), order.cpu().split(self.batch_size)
            return (tuple(tensor[rows].to(self.device) for tensor in tensors) for rows in batches)
        return ((rows,) for rows in order.split(self.batch_size))

    def _local_shard(self, inputs: tuple[Tensor, ...], count: int) -> tuple[tuple[Tensor, ...], float | None]:
        """Return the rows of a minibatch that this process has, and their share; all and None in one process."""
        if self.group.size == 1:
            return inputs, None
        rows, share = self.group.local_shard(count)
        return tuple(tensor[rows] for tensor in inputs), share

    def _read(self, unread: list[tuple[Tensor, int]], epoch: int, first_step: int) -> Tensor:
        """Copy metrics from the device and return their sums over data ``(3,)``; the only place where the host waits.

        Raises:
            DivergenceError: if one is not finite.

        """
        values = torch.stack([value for value, _ in unread]).cpu().double()
        finite = values.isfinite().all(1)
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            terms = [name for name, value in zip(TERMS, values[bad].tolist(), strict=True) if not math.isfinite(value)]
            raise self._diverged(epoch, first_step + bad, terms[-1])
        counts = torch.tensor([count for _, count in unread], dtype=torch.float64)
        return counts @ values

    def _diverged(self, epoch: int, step: int, term: str) -> DivergenceError:
        saved = (
            f"the run folder {self.checkpoint.folder.path} holds the weights of epoch {epoch - 1}, from "
            "which training can resume"
            if self.checkpoint
            else "give fit a folder to keep the weights of the last good epoch"
        )
        return DivergenceError(
            f"training stopped in epoch {epoch} at its step {step}: {term} is not finite; lower the learning rate "
            f"({self.training.rate(epoch):g}) or set clip_norm; {saved}"
        )

    @torch.no_grad()
    def _raise_if_diverged(self, inputs: tuple[Tensor, ...], epoch: int, step: int, error: ValueError) -> None:
        """Raise a DivergenceError if the loss without Pyro's checks, which failed, is not finite."""
        with validation(enabled=False):
            loss, _ = self.step.loss(*inputs)
        if not loss.isfinite():
            raise self._diverged(epoch, step, "the loss") from error

    @torch.no_grad()
    def _estimate_statistics(self, epoch: int) -> None:
        """Set the running statistics of batch normalization to averages over minibatches with the current weights.

        All minibatches count equally, so that a smaller last one is left out. Ranks average their statistics.
        """
        layers = _normalizations(self.programs.all_modules)
        if not layers:
            return
        num_batches = math.ceil(STATISTICS_DATA / self.batch_size)
        with (
            _averaging(self.programs.all_modules, layers),
            self._minibatches(epoch) as minibatches,
            validation(enabled=False),
        ):
            for inputs in itertools.islice(minibatches, num_batches):
                count = len(inputs[0])
                if count == self.batch_size:
                    inputs, _ = self._local_shard(inputs, count)
                    run(*self.step.bind(*inputs))
        statistics = [getattr(layer, name) for layer in layers for name in ("running_mean", "running_var")]
        for buffer, total in zip(statistics, self.group.sum(statistics), strict=True):
            buffer.copy_(total / self.group.size)

    def _validate(self, epoch: int, *, checked: bool) -> dict[str, float] | None:
        """Return ELBO, reconstruction, KL, and L_K for K particles, on the validation data, nats per datum."""
        if self.validation_data is None:
            return None
        if self.group.size > 1:  # running statistics differ between processes
            self.group.copy_from_first([t for t in self.tensors.all if not t.requires_grad])
        reconstruction, kl, bound = compute_bounds(
            self.programs,
            self.validation_data,
            num_weighted=self.num_weighted,
            seed=self.training.seed,
            device=self.device,
            checked=checked,
        )
        if not math.isfinite(reconstruction - kl):
            raise self._diverged(epoch, self.steps_per_epoch, "the validation ELBO")
        bounds = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        return bounds if self.num_weighted == 1 else bounds | {self.monitored: bound}


def _normalizations(modules: Iterable[nn.Module]) -> list[_BatchNorm]:
    """Return the layers of batch normalization that update running statistics; a momentum of 0.0 freezes them."""
    layers = [part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)]
    return [layer for layer in layers if layer.num_batches_tracked is not None and layer.momentum != 0.0]


@contextlib.contextmanager
def _averaging(modules: Iterable[nn.Module], layers: Iterable[Any]) -> Iterator[None]:
    """Set the running statistics of layers to their averages over the minibatches that run inside the block.

    The moving average that torch keeps during training is over minibatches seen by earlier weights. After few or large
    steps it describes no network, and the validation ELBO can be off by millions of nats. All other modules are in
    evaluation mode inside the block. Layers that do not run keep their statistics.

    *Rethinking "batch" in BatchNorm (Wu, Johnson 2021)*, https://arxiv.org/abs/2105.07576, section 3
    """
    before = [(layer, layer.momentum, layer.num_batches_tracked.clone()) for layer in layers]
    try:
        with module_mode(modules, training=False):
            for layer, *_ in before:
                layer.training = True
                layer.momentum = None  # torch then averages all minibatches since the count was zero
                layer.num_batches_tracked.zero_()
            yield
    finally:
        for layer, momentum, count in before:
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(count)
