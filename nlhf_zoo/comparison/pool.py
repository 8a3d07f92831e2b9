"""Policies as each other's opponents: how each does against the one that it does worst against, and their own game."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch

from nlhf_zoo.oracles import MatrixOracle
from nlhf_zoo.tabular import find_winner

__all__ = ["Member", "NashAverage", "Share", "nash_average", "resampled", "worst_case"]

Floats = np.ndarray[Any, np.dtype[np.float64]]

LEVEL = 0.95
_AT_A_TIME = 100
_ALL = slice(None)


def worst_case(verdicts: Floats, counts: Floats | None = None) -> Floats:
    """Each policy's win rate against the other one that it does worst against: 1/2 less its exploitability in the pool.

    That opponent is chosen on every second prompt and met on the others, both ways round, and the two are averaged.
    The least of m noisy numbers lies below all that is true, the more so the larger m is; what is measured on other
    prompts than it was chosen on does not.

    Args:
        verdicts: (m, M, n) P(answer of the row > answer of the column) on each of n prompts; the first m of the M in
            the pool are the policies themselves.
        counts: (d, n) how often each prompt counts, in d samples of the prompts; once each, unless given.

    Returns:
        (m,), or (d, m) where counts are given.
    """
    prompts = verdicts.shape[-1]
    once = np.ones((1, prompts)) if counts is None else counts
    found = np.concatenate(
        [_worst(verdicts, once[at : at + _AT_A_TIME]) for at in range(0, len(once), _AT_A_TIME)], axis=0
    )
    return found[0] if counts is None else found


def _worst(verdicts: Floats, counts: Floats) -> Floats:
    """(d, m)"""
    one, other = (_rates(verdicts[..., half], counts[:, half]) for half in _halves(verdicts.shape[-1]))
    return (_met(one, other) + _met(other, one)) / 2


def _halves(prompts: int) -> tuple[slice, slice]:
    return (slice(0, None, 2), slice(1, None, 2)) if prompts > 1 else (_ALL, _ALL)


def _rates(verdicts: Floats, counts: Floats) -> Floats:
    """(d, m, M)"""
    return np.moveaxis(verdicts @ counts.T, -1, 0) / counts.sum(-1)[:, None, None]


def _met(chosen_by: Floats, measured: Floats) -> Floats:
    worst = _others(chosen_by).argmin(-1)
    return np.take_along_axis(measured, worst[..., None], -1)[..., 0]


def _others(rates: Floats) -> Floats:
    """Without the policies themselves, whom nobody meets."""
    return np.where(np.eye(*rates.shape[-2:], dtype=bool), np.inf, rates)


def resampled(prompts: int, draws: int, generator: np.random.Generator) -> Floats:
    """(draws, prompts) counts of bootstrap samples, the two halves that `worst_case` makes each by itself."""
    counts = np.ones((draws, prompts))
    for half in _halves(prompts):
        size = counts[0, half].size
        counts[:, half] = generator.multinomial(size, np.full(size, 1 / size), size=draws)
    return counts


@attrs.frozen
class Member:
    """Who trained a policy, and under which seed; neither of the reference."""

    solver: str | None = None
    seed: int | None = None


@attrs.frozen
class Share:
    """A number with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@attrs.frozen
class NashAverage:
    """The von Neumann winner of the policies' own game, of the largest entropy (Balduzzi et al. 2018).

    Attributes:
        shares: (m,) the policies' probabilities.
        mass: solver -> what its policies have of it together.
        skill: solver -> mean win rate of its policies against it, at most 1/2.
    """

    shares: Floats
    mass: Mapping[str, Share]
    skill: Mapping[str, Share]


def nash_average(verdicts: Floats, members: Sequence[Member], draws: int = 200) -> NashAverage:
    """Intervals by a bootstrap over the seeds and, within each draw, over the prompts.

    Args:
        verdicts: (m, m, n) as in `worst_case`, of the policies alone.
        members: (m,) of the policies.

    Source: Balduzzi, Tuyls, Perolat, Graepel, Re-evaluating Evaluation, NeurIPS 2018.
    """
    generator = np.random.default_rng(2)
    seeds = sorted({member.seed for member in members if member.seed is not None})
    solvers = list(dict.fromkeys(member.solver for member in members if member.solver is not None))
    once = dict.fromkeys(seeds, 1)
    shares, *whole = _standing(verdicts.mean(-1), members, solvers, once)
    counts = resampled(verdicts.shape[-1], draws, generator)
    drawn = []
    for sample in counts:
        times = dict(zip(seeds, generator.multinomial(len(seeds), [1 / len(seeds)] * len(seeds)).tolist(), strict=True))
        drawn.append(_standing(verdicts @ sample / sample.sum(), members, solvers, times)[1:])
    tail = (1 - LEVEL) / 2
    # Solvers with no policy among a draw's seeds cannot be: every solver has a run under every seed, or has failed.
    low, high = np.nanquantile(np.array(drawn), [tail, 1 - tail], axis=0)
    mass, skill = (
        {name: Share(*map(float, ends)) for name, *ends in zip(solvers, whole[at], low[at], high[at], strict=True)}
        for at in (0, 1)
    )
    return NashAverage(shares, mass, skill)


def _standing(
    rates: Floats, members: Sequence[Member], solvers: Sequence[str], times: Mapping[int, int]
) -> tuple[Floats, Floats, Floats]:
    """(m,) shares, and (solvers,) masses and skills; a seed counts so many times."""
    weight = np.array([1 if member.seed is None else times[member.seed] for member in members])
    kept = np.flatnonzero(weight)
    shares = np.zeros(len(members))
    shares[kept] = find_winner(MatrixOracle(torch.from_numpy(rates[np.ix_(kept, kept)]))).policy.probs.numpy()
    against = rates @ shares
    mass, skill = [], []
    for solver in solvers:
        mine = np.array([member.solver == solver for member in members])
        mass.append(shares[mine].sum())
        counted = weight * mine
        skill.append(against @ counted / counted.sum() if counted.any() else np.nan)
    return shares, np.array(mass), np.array(skill)
