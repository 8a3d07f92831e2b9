"""The default regulariser, registered as any other divergence would be."""

from __future__ import annotations

from nlhf_zoo.interfaces import ReverseKL
from nlhf_zoo.registry import hookimpl


@hookimpl
def nlhf_zoo_divergences():
    return [ReverseKL]
