"""Nash-MP's three forms on a table, at thousands of step sizes at once: array copies of the zoo's solver.

`nlhf_zoo` runs one setting at a time; here a row of the arrays is a setting. `difference` holds the copies to the
zoo's own iterates, and the study calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

import nlhf_zoo as nz
from nlhf_zoo.drive import configure, iterates

__all__ = ["FORMS", "Settings", "difference", "race"]

Floats = NDArray[np.float64]

_GROWTH = 1.04
"""Measured whenever the queries have grown by so much: the resolution of what `race` finds."""


@attrs.frozen(eq=False)
class Settings:
    """C settings, all (C,).

    Attributes:
        beta, eta, kappa: as the solver's; kappa is read by the practical form only.
        rate: gradient step on the logits, times 1/Y: what a step does to a response of average probability.
        inner: gradient steps an update, for all settings alike; the two-step gradient form only.
    """

    beta: Floats
    eta: Floats
    kappa: Floats
    rate: Floats
    inner: int = 1


States = Iterator[tuple[Floats, Floats]]
"""(C, Y) log-probabilities after 0, 1, ... steps, with their payoffs."""


def exact(matrix: Floats, log_reference: Floats, at: Settings) -> States:
    beta, held = at.beta[:, None], (at.beta / at.eta)[:, None]
    current = np.broadcast_to(log_reference, (len(at.beta), len(matrix)))
    while True:
        payoff = np.exp(current) @ matrix.T
        yield current, payoff
        half = _normalised((payoff + beta * log_reference + held * current) / (beta + held))
        payoff = np.exp(half) @ matrix.T
        current = _normalised((payoff + beta * log_reference + held * current) / (beta + held))


def gradient(matrix: Floats, log_reference: Floats, at: Settings) -> States:
    current = np.broadcast_to(log_reference, (len(at.beta), len(matrix)))
    while True:
        payoff = np.exp(current) @ matrix.T
        yield current, payoff
        half = _climbed(current, payoff, current, log_reference, at)
        current = _climbed(half, np.exp(half) @ matrix.T, current, log_reference, at)


def practical(matrix: Floats, log_reference: Floats, at: Settings) -> States:
    current = centre = np.broadcast_to(log_reference, (len(at.beta), len(matrix)))
    kappa, at = at.kappa[:, None], attrs.evolve(at, inner=1)
    while True:
        payoff = np.exp(current) @ matrix.T
        yield current, payoff
        current = _climbed(current, payoff, centre, log_reference, at)
        centre = _normalised((1 - kappa) * centre + kappa * current)


FORMS: dict[str, tuple[Callable[[Floats, Floats, Settings], States], int]] = {
    "exact": (exact, 2),
    "gradient": (gradient, 2),
    "practical": (practical, 1),
}
"""Name -> its states, and the queries of a step."""


def race(form: str, matrix: Floats, log_reference: Floats, at: Settings, most: int, share: float) -> Floats:
    """(C,) queries after which the duality gap stays below `share` of the reference's; inf where `most` are too few.

    A setting is no longer looked at when it is a hundred times below.
    """
    states, each = FORMS[form]
    found, settled = np.full(len(at.beta), np.inf), np.zeros(len(at.beta), dtype=bool)
    goal, due = np.zeros(0), 0.0
    for step, (current, payoff) in enumerate(states(matrix, log_reference, at)):
        if step == 0:
            goal = share * _gap(current, payoff, log_reference, at.beta)
        if step * each > most or settled.all():
            return np.where(np.isfinite(found), np.maximum(found, 1), np.inf)
        if step * each < due and step:
            continue
        due = step * each * _GROWTH
        gap = _gap(current, payoff, log_reference, at.beta)
        below = gap <= goal
        found = np.where(settled, found, np.where(below, np.where(np.isfinite(found), found, step * each), np.inf))
        settled |= gap <= goal / 100
    raise AssertionError("states end")


def _gap(log_probs: Floats, payoff: Floats, log_reference: Floats, beta: Floats) -> Floats:
    best = _normalised(log_reference + payoff / beta[:, None])
    return 2 * beta * (np.exp(log_probs) * (log_probs - best)).sum(1)


def _climbed(start: Floats, payoff: Floats, centre: Floats, log_reference: Floats, at: Settings) -> Floats:
    """`inner` gradient steps on the logits, against a fixed payoff."""
    beta, held, rate = at.beta[:, None], (at.beta / at.eta)[:, None], at.rate[:, None] * start.shape[1]
    log_probs = start
    for _ in range(at.inner):
        p = np.exp(log_probs)
        slope = payoff - beta * (log_probs - log_reference) - held * (log_probs - centre)
        log_probs = _normalised(log_probs + rate * p * (slope - (p * slope).sum(1, keepdims=True)))
    return log_probs


def _normalised(logits: Floats) -> Floats:
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def difference(form: str, matrix: Floats, log_reference: Floats, at: Settings, steps: int) -> float:
    """The largest difference in log-probabilities from the zoo's own solver, over so many steps of every setting."""
    reference = nz.TabularPolicy(torch.from_numpy(log_reference))
    worst = 0.0
    copies = [current for (current, _), _ in zip(FORMS[form][0](matrix, log_reference, at), range(steps), strict=False)]
    for row in range(len(at.beta)):
        policy = reference
        if form != "exact":
            rate = float(at.rate[row]) * len(matrix)
            policy = nz.SoftmaxPolicy(reference.log_probs, learning_rate=rate, steps=at.inner)
        kappa = {"kappa": float(at.kappa[row])} if form == "practical" else {}
        solver = configure("nash_mp", eta=float(at.eta[row]), **kappa)
        game = nz.Game(nz.MatrixOracle(matrix), beta=float(at.beta[row]), reference=reference)
        for copy, state in zip(copies, iterates(game, solver, policy), strict=False):
            assert isinstance(state.current, nz.TabularPolicy)
            worst = max(worst, float(np.abs(state.current.log_probs.numpy() - copy[row]).max()))
    return worst
