"""The sample sites of one run of a program: what objectives need of a trace, and no more."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger

from pyrovae.pair import Program


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
        if msg["name"] in self.nodes:
            raise RuntimeError(f"there are several sample sites named {msg['name']!r}; give each a name of its own")
        self.nodes[msg["name"]] = msg.copy()


def sites_of(program: Program, *args: Any, drawn: Sites | None = None, **kwargs: Any) -> Sites:
    """Run a program, and return its sample sites.

    Args:
        program: model or guide.
        args: of it.
        drawn: the sites of another run, whose draws are taken.
        kwargs: of it.

    """
    with Sites(None if drawn is None else drawn.nodes) as sites:
        program(*args, **kwargs)
    return sites
