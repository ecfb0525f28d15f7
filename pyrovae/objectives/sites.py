"""The sample sites of one run of a program: what objectives need of a trace, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.subsample_messenger import SubsampleMessenger, _Subsample
from torch import Tensor

from pyrovae.programs import Program

ALL_ROWS = _Subsample(0, None, device="cpu")  # stands for the distribution of the rows of any plate that takes them all
ROWS = {
    "type": "sample",
    "fn": ALL_ROWS,
    "is_observed": False,
    "infer": {},
    "scale": 1.0,
    "mask": None,
    "cond_indep_stack": (),
}


class Sites(Messenger):
    """Notes the sample sites of a program, as `pyro.poutine.trace` does, whose draws may be those of another run, as
    with `pyro.poutine.replay`; a handler in place of two, in every step.

    Attributes:
        nodes: the sites by name.

    Args:
        drawn: sites whose values are taken.

    """

    def __init__(self, drawn: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.nodes: dict[str, Any] = {}
        self.drawn = drawn or {}

    def _pyro_sample(self, msg: Any) -> None:
        drawn = None if msg["is_observed"] else self.drawn.get(msg["name"])
        if drawn is not None:
            if drawn["is_observed"]:
                raise RuntimeError(f"the site {msg['name']!r} is latent in the model but observed in the guide")
            msg.update(done=True, value=drawn["value"], infer=drawn["infer"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["infer"].get("_do_not_trace"):
            return
        self.note(msg.copy())

    def note(self, site: Any) -> None:
        """Note a site.

        Raises:
            RuntimeError: if there is one of that name.

        """
        if site["name"] in self.nodes:
            raise RuntimeError(f"there are several sample sites named {site['name']!r}; give each a name of its own")
        self.nodes[site["name"]] = site


def sites_of(program: Program, *args: Any, drawn: Sites | None = None, **kwargs: Any) -> Sites:
    """Run a program, and return its sample sites.

    Args:
        program: model or guide.
        args: of it.
        drawn: the sites of another run, whose draws are taken.
        kwargs: of it.

    """
    with whole_plates(), Sites(None if drawn is None else drawn.nodes) as sites:
        program(*args, **kwargs)
    return sites


@contextmanager
def whole_plates() -> Iterator[None]:
    """Let a plate without subsampling take all its rows without running handlers for a draw of them.

    That draw is a fortieth of a step of the default model. Pyro still makes it inside of any other handler than
    `Sites`, and where the rows of the plate were drawn before.
    """
    draw = SubsampleMessenger._subsample
    draw = getattr(draw, "of_pyro", draw)  # where another thread has not left yet

    def subsample(
        name: str,
        size: int | None = None,
        subsample_size: int | None = None,
        subsample: Tensor | None = None,
        use_cuda: bool | None = None,  # noqa: FBT001
        device: str | None = None,
    ) -> Any:
        whole = subsample_size is None and subsample is None and use_cuda is None
        sites = _PYRO_STACK[0] if len(_PYRO_STACK) == 1 else None
        if whole and isinstance(size, int) and type(sites) is Sites:
            drawn = sites.drawn.get(name)
            if drawn is None or (drawn["fn"] is ALL_ROWS and len(drawn["value"]) == size):
                rows = torch.arange(size, device=device) if drawn is None else drawn["value"]
                sites.note({**ROWS, "name": name, "value": rows})
                return size, size, rows
        return draw(name, size, subsample_size, subsample, use_cuda, device)

    subsample.of_pyro = draw  # type: ignore[attr-defined]
    try:
        SubsampleMessenger._subsample = staticmethod(subsample)
        yield
    finally:
        SubsampleMessenger._subsample = staticmethod(draw)
