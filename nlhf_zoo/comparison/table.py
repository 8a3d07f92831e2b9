"""One cell on a table: a game of listed responses, a solver, a seed, a budget."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import attrs

from nlhf_zoo.comparison.claims import claimed
from nlhf_zoo.comparison.draws import CommonDraws
from nlhf_zoo.comparison.entries import GameEntry
from nlhf_zoo.comparison.tasks import Done, Run
from nlhf_zoo.drive import Result, configure, equilibrium_of, solve
from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import EnumerableOracle, Game, State
from nlhf_zoo.registry import lookup
from nlhf_zoo.tabular import TabularPolicy
from nlhf_zoo.tabular.threads import one_thread

__all__ = ["METRICS", "Due", "Setting", "TableRun", "labels_of", "setting"]

METRICS = ("duality_gap", "kl_to_equilibrium", "span_to_equilibrium")
_GROWTH = 10 ** (1 / 20)  # twenty measurements a decade of queries: a curve on a log axis needs no more


@attrs.frozen(eq=False)
class Setting:
    """A game as it is played under one seed; the oracle is exact.

    Attributes:
        game: its reference is the initial policy too.
        target: the equilibrium, where it can be found.
        wins: (Y, Y) the counts that it was made of, if it was.
    """

    game: Game
    target: TabularPolicy | None
    wins: Any = None

    @property
    def oracle(self) -> EnumerableOracle:
        assert isinstance(self.game.oracle, EnumerableOracle)
        return self.game.oracle


@functools.lru_cache(maxsize=4)
def setting(entry: GameEntry, seed: int) -> Setting:
    """The game under this seed; the last few are kept, since solvers meet on them one after another.

    Raises:
        BadInput: no such game, or parameters that do not fit.
    """
    from nlhf_zoo.data import read_reference
    from nlhf_zoo.games.named import named_game
    from nlhf_zoo.tabular.kinds import parametrised

    named = named_game(entry.name, entry.options, seed=seed, smoothing=entry.smoothing, kind=entry.kind)
    try:
        divergence = lookup("divergences", entry.divergence)(**entry.divergence_options)
    except TypeError as error:
        raise BadInput(f"divergence {entry.divergence}: {error}") from None
    reference = {}
    if entry.reference is not None:
        log_probs = read_reference(entry.reference, named.oracle.labels, named.oracle.num_responses)
        reference["reference"] = TabularPolicy(log_probs)
    game = Game(named.oracle, beta=entry.beta, divergence=divergence, name=entry.label, **reference)
    assert isinstance(game.reference, TabularPolicy)
    target = equilibrium_of(game)
    initial = parametrised(entry.policy, entry.policy_options, game.reference, seed)
    return Setting(attrs.evolve(game, reference=initial), target, named.wins)


class Due:
    """Whether it is time to measure: whenever the queries (or steps, where nothing is asked) grew by a share."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, state: State) -> bool:
        spent = state.queries.total or state.step
        if spent < self._next:
            return False
        self._next = max(spent + 1, spent * _GROWTH)
        return True


@attrs.frozen(kw_only=True)
class TableRun(Run):
    """One solver on one game of listed responses."""

    def perform(self) -> Done:
        try:
            with one_thread():
                return self._played(setting(self.game, self.seed))
        except Exception:
            setting.cache_clear()  # a solver that failed may have changed the game that it was lent
            raise

    def _played(self, found: Setting) -> Done:
        game = found.game
        if self.game.comparisons is not None:
            oracle = CommonDraws(found.oracle, self.game.comparisons, self.seed)
            game = attrs.evolve(game, oracle=oracle)
        solver = configure(self.name, **self.options)
        result = solve(
            game,
            solver,
            queries=self.queries,
            steps=self.steps,
            tol=self.tol,
            seed=self.seed,
            every=Due(),
            strict=True,
            target=found.target,
        )
        return Done({"rows": _rows(result)}, _policy(result, found.oracle))


def _rows(result: Result) -> Mapping[str, Any]:
    history = result.history
    bounds = claimed(result.solver, result.game, history)
    return {
        **{name: [row[name] for row in history] for name in ("step", "queries", "seconds")},
        "tokens": [0] * len(history),
        "metrics": {name: [row[name] for row in history] for name in METRICS if name in history[0]},
        "bounds": bounds,
    }


def _policy(result: Result, oracle: EnumerableOracle) -> Mapping[str, Any]:
    assert isinstance(result.policy, TabularPolicy)
    return {"labels": labels_of(oracle), "probabilities": result.policy.probs.tolist()}


def labels_of(oracle: EnumerableOracle) -> list[str]:
    """(Y,) names; the numbers from 0 where there are none."""
    return [str(label) for label in oracle.labels or range(oracle.num_responses)]
