"""Broken divergences, each with one formula wrong, and the test of tests/test_divergences.py that has to find it."""

# What is wrong here is wrong on purpose.
# pyright: reportIncompatibleMethodOverride=false, reportArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable

import attrs

from nlhf_zoo import Divergence, ReverseKL
from nlhf_zoo_plugins.divergences import Alpha, ChiSquared, ForwardKL, JensenShannon, SquaredHellinger, TotalVariation
from tests import test_divergences as tests

MUTANTS: dict[str, tuple[Divergence, Callable[..., None]]] = {}
"""By name: the broken divergence, and the test that explains it."""

SLOPE = tests.test_derivative_is_the_generators
CURVATURE = tests.test_curvature_is_the_derivatives
INVERSE = tests.test_inverse_undoes_the_derivative
CONJUGATE = tests.test_fenchel_young
CONVEX = tests.test_generator_is_convex
VALUE = tests.test_value_is_positive_and_zero_only_at_equality
ENDS = tests.test_slopes_at_the_ends


def mutant(test: Callable[..., None]) -> Callable[[type[Divergence]], type[Divergence]]:
    def register(cls: type[Divergence]) -> type[Divergence]:
        made = attrs.frozen(cls)
        MUTANTS[cls.__name__] = made(), test
        return made

    return register


# --- the generator


@mutant(SLOPE)
class GeneratorWithoutItsFactor(ChiSquared):
    def generator(self, ratio):
        return super().generator(ratio) / 2


@mutant(CONVEX)
class GeneratorTurnedRound(ForwardKL):
    def generator(self, ratio):
        return -super().generator(ratio)


@mutant(SLOPE)
class GeneratorNotZeroAtOne(SquaredHellinger):
    def generator(self, ratio):
        return super().generator(ratio) + 1e-3


@mutant(VALUE)
class TermsOfTheOtherOrder(ForwardKL):
    """Of KL(pi || rho), where f is that of KL(rho || pi)."""

    def interior_terms(self, log_p, log_q):
        return log_p.exp() * (log_p - log_q)


# --- the derivative


@mutant(SLOPE)
class DerivativeTurnedRound(ForwardKL):
    def derivative(self, ratio):
        return 1 / ratio


@mutant(SLOPE)
class DerivativeWithoutItsConstant(ReverseKL):
    def derivative(self, ratio):
        return ratio.log()


@mutant(SLOPE)
class DerivativeInTheWrongCoordinate(JensenShannon):
    """df/da of a = log t, where f'(t) is asked for."""

    def derivative(self, ratio):
        return ratio * super().derivative(ratio)


@mutant(SLOPE)
class LogFormOfAnotherAlpha(Alpha):
    def derivative_of_log(self, log_ratio):
        return Alpha(1 - self.alpha / 2).derivative_of_log(log_ratio)


@mutant(CURVATURE)
class CurvatureWithoutTheRatio(ChiSquared):
    """f''(t), where t f''(t) is asked for."""

    def curvature_of_log(self, log_ratio):
        return 2 + 0 * log_ratio


@mutant(ENDS)
class SlopeAtInfinityForgotten(SquaredHellinger):
    @property
    def slope_at_infinity(self):
        return math.inf


@mutant(ENDS)
class SlopeAtZeroHalved(TotalVariation):
    @property
    def slope_at_zero(self):
        return -0.25


# --- the inverse and the conjugate


@mutant(INVERSE)
class InverseOfTheWrongBranch(ChiSquared):
    def log_inverse(self, slope):
        return (slope / 2).clamp_min(-1).abs().log1p()


@mutant(INVERSE)
class InverseOffByAConstant(ReverseKL):
    def log_inverse(self, slope):
        return slope


@mutant(INVERSE)
class SlackWithTheWrongPower(SquaredHellinger):
    def log_inverse_of_slack(self, log_slack):
        return -log_slack


@mutant(CONJUGATE)
class ConjugateTurnedRound(ReverseKL):
    def conjugate(self, slope):
        return -super().conjugate(slope)


@mutant(CONJUGATE)
class ConjugateWithoutItsSquare(ChiSquared):
    def conjugate(self, slope):
        return slope


@mutant(CONJUGATE)
class ConjugateOfAnotherScale(JensenShannon):
    def conjugate(self, slope):
        return super().conjugate(slope / 2)
