"""Claims of RSPO at the longest step that they allow in each game, which is longer than any default's."""

from __future__ import annotations

import attrs
import pytest

from nlhf_zoo import Game, Guarantee
from nlhf_zoo.testing import falsify
from nlhf_zoo_plugins.rspo import RSPO, relative_convexity, strong_convexity


@attrs.frozen
class NeverGrows(RSPO):
    times: float = 7.999

    def _eta(self, game: Game) -> float:
        return self.times * game.beta * strong_convexity(self._divergence())


@attrs.frozen
class Linear(RSPO):
    def _eta(self, game: Game) -> float:
        return 4 * game.beta * relative_convexity(self._divergence(), game)


@pytest.mark.parametrize(
    "solver",
    [NeverGrows(divergence="chi_squared"), Linear(divergence="forward_kl"), Linear(divergence="jensen_shannon")],
    ids=lambda solver: f"{type(solver).__name__}, {solver.divergence}",
)
def test_no_game_refutes_the_longest_step(solver: RSPO) -> None:
    claims = falsify(solver, examples=8)
    assert claims
    assert all(claim.games >= 8 and not claim.violated for claim in claims)


def test_at_three_times_the_longest_step_a_cycle_turns_outwards() -> None:
    """Beside the uniform equilibrium of a strong odd cycle KL grows from eta = 2 pi^2 beta f''(1) on, as beta -> 0."""

    @attrs.frozen
    class Longer(NeverGrows):
        @property
        def guarantees(self) -> tuple[Guarantee, ...]:
            return (attrs.evolve(NeverGrows().guarantees[0], holds=lambda game: True),)

    (claim,) = falsify(Longer(divergence="chi_squared", times=24.0), examples=1)
    assert claim.violated
