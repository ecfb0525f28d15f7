"""Initialization of a VAE from its training data: output at the mean, learned scales at the spread."""

from __future__ import annotations

import logging
import math

import torch

from pyrovae.data import Split
from pyrovae.data.loader import Loader
from pyrovae.networks import Decoder
from pyrovae.programs import Program
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.errors import first_line
from pyrovae.vae import VAE

logger = logging.getLogger("pyrovae")

MAX_ROWS, MAX_ELEMENTS = 10_000, 2**23  # size of the data from which the spread is measured


@torch.no_grad()
def start_at_data(model: Program, rows: Loader) -> str:
    """Set the output bias of a VAE's decoder and the learned scales of its likelihood to the mean and spread of data.

    Values that were trained or set before are not changed: a bias that is not all zeros, a scale that is not the
    default of its class.

    Args:
        model: of a `VAE`; other models are not changed.
        rows: the training data.

    Returns:
        A text that names the values that were set; empty if there are none.

    """
    vae = getattr(model, "__self__", None)
    if not isinstance(vae, VAE):
        return ""
    decoder = vae.decoder if isinstance(vae.decoder, Decoder) and vae.decoder.is_untouched() else None
    learned = list(vae.likelihood.parameters())
    if decoder is None and not learned:
        return ""
    before = [parameter.clone() for parameter in learned]
    size = min(len(rows), MAX_ROWS, max(1, MAX_ELEMENTS // math.prod(vae.likelihood.x_shape)))
    with forked_random(stream_seed("start"), rows.device):
        x = rows.draw(torch.linspace(0, len(rows) - 1, size, device=rows.device).long())[0]
    source = rows.source[0] if isinstance(rows.source, tuple) else rows.source
    mean = source.mean() if isinstance(source, Split) else source.mean(0, dtype=torch.get_default_dtype())
    device = next((parameter.device for parameter in vae.parameters()), mean.device)
    try:
        params = vae.likelihood.start(x.to(device), mean.to(device))
        if tuple(params.shape) != vae.likelihood.param_shape:
            shape = vae.likelihood.param_shape
            raise ValueError(f"initial_params must return the shape {shape}, got {tuple(params.shape)}")
        at_mean = decoder is not None and bool(params.isfinite().all()) and decoder.start(params)
    except Exception as error:  # a likelihood of the user may raise anything
        logger.warning("the output does not start at the mean of the training data: %s", first_line(error))
        return ""
    at_spread = any(not now.equal(then) for now, then in zip(learned, before, strict=True))
    words = {"the output at the mean of the training data": at_mean, "learned scales at their spread": at_spread}
    return " and ".join(text for text, is_so in words.items() if is_so)
