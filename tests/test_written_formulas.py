"""The formulas of the solvers' pages, written again in numpy alone: every iterate, far from the reference too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import nlhf_zoo as nz
from nlhf_zoo.drive import iterates

STEPS, BETA = 40, 0.1
_generator = np.random.default_rng(3)
_upper = np.triu(_generator.random((5, 5)), 1)
P = _upper + np.tril(1 - _upper.T, -1) + 0.5 * np.eye(5)
Logs = Any


def normal(logs: Logs) -> Logs:
    shifted = logs - logs.max()
    return shifted - np.log(np.exp(shifted).sum())


REFERENCE = normal(2 * _generator.normal(size=5))
START = normal(_generator.normal(size=5))


def payoff(logs: Logs) -> Logs:
    return P @ np.exp(logs)


def improved(u: Logs, centre: Logs, weight: float) -> Logs:
    return normal((u + BETA * REFERENCE + weight * centre) / (BETA + weight))


def nash_mp(past: list[Logs]) -> Logs:
    half = improved(payoff(past[-1]), past[-1], 0.5)  # eta = 2 beta
    return improved(payoff(half), past[-1], 0.5)


def nash_md(past: list[Logs]) -> Logs:
    eta = 2 / (BETA * (len(past) + 1))
    mixed = normal((1 - eta * BETA) * past[-1] + eta * BETA * REFERENCE)
    return mixed + eta * payoff(mixed)


def online_ipo(past: list[Logs]) -> Logs:
    eta = 4 * BETA / (1 + 4 * BETA**2)
    return past[-1] + eta * (payoff(past[-1]) - BETA * (past[-1] - REFERENCE))


def egpo(past: list[Logs]) -> Logs:
    eta = 2 * ((1 + BETA**2) ** 0.5 - BETA)
    half = normal((1 - eta * BETA) * past[-1] + eta * BETA * REFERENCE + eta * payoff(past[-1]))
    return (1 - eta * BETA) * past[-1] + eta * BETA * REFERENCE + eta * payoff(half)


def mmd(past: list[Logs]) -> Logs:
    return improved(payoff(past[-1]), past[-1], 1 / (4 * BETA))


def sppo(past: list[Logs]) -> Logs:
    return past[-1] + 0.1 * payoff(past[-1])


def optimistic_md(past: list[Logs]) -> Logs:
    before = past[-2] if len(past) > 1 else past[-1]
    return improved(2 * payoff(past[-1]) - payoff(before), past[-1], 2.0)


def onpo(past: list[Logs]) -> Logs:
    before = payoff(past[-2]) if len(past) > 1 else 0.0
    return past[-1] + 2 * payoff(past[-1]) - before


@pytest.mark.parametrize("formula", [nash_mp, nash_md, online_ipo, egpo, mmd, sppo, optimistic_md, onpo])
def test_a_page_says_what_its_solver_does(formula: Callable[[list[Logs]], Logs]) -> None:
    reference, start = (nz.TabularPolicy(torch.tensor(logs)) for logs in (REFERENCE, START))
    game = nz.Game(nz.MatrixOracle(P), reference, BETA)
    run = iterates(game, nz.solvers()[formula.__name__](), start)
    past = [START]
    for state in (next(run) for _ in range(STEPS)):
        np.testing.assert_allclose(state.current.log_probs.numpy(), past[-1], rtol=0, atol=1e-10)  # type: ignore[attr-defined]
        past.append(normal(formula(past)))
