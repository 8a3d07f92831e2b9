"""The audit of an oracle tells a sound judge from a biased, an undecided and a wrong one."""

from __future__ import annotations

import pytest
import torch

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import QueryCount
from nlhf_zoo.intervals import wilson_interval
from nlhf_zoo.oracles import CallableOracle, MatrixOracle
from nlhf_zoo.oracles.audit import audit

FIRST = [f"{i}" for i in range(20)]
SECOND = [f"{i + 1}" for i in range(20)]
PROMPTS = ["which is larger?"] * 20


def larger(prompts, first, second):
    return [0.9 if int(a) > int(b) else 0.1 for a, b in zip(first, second, strict=True)]


def mostly_first(prompts, first, second):
    return [0.8] * len(first)


def undecided(prompts, first, second):
    return [0.5] * len(first)


def test_a_sound_oracle_raises_no_warning_and_no_query_is_counted():
    oracle = CallableOracle(larger)
    found = audit(oracle, PROMPTS, FIRST, SECOND, [0] * 20)
    assert found.warnings == ()
    assert found.pairs == 20
    assert found.antisymmetry_error == pytest.approx(0, abs=1e-15)
    assert found.position_bias == pytest.approx(0, abs=1e-15)
    assert found.order_flips == 0
    assert found.decisiveness == pytest.approx(0.4)
    assert found.accuracy == 1
    assert found.accuracy_interval == wilson_interval(20, 20)
    assert oracle.queries == QueryCount()


def test_a_judge_that_favours_the_first_place_is_found_out_even_where_both_orders_are_averaged():
    plain = audit(CallableOracle(mostly_first, symmetrise=False), PROMPTS, FIRST, SECOND)
    assert plain.antisymmetry_error == pytest.approx(0.6)
    assert plain.position_bias == pytest.approx(0.3)
    assert plain.order_flips == 1
    assert any("contradicts itself" in line for line in plain.warnings)
    averaged = audit(CallableOracle(mostly_first), PROMPTS, FIRST, SECOND)
    assert averaged.antisymmetry_error == pytest.approx(0, abs=1e-15)
    assert averaged.position_bias == pytest.approx(0.3)
    assert any("first place" in line for line in averaged.warnings)
    assert any("near 1/2" in line for line in averaged.warnings)


def test_an_undecided_and_a_wrong_judge():
    weak = audit(CallableOracle(undecided), PROMPTS, FIRST, SECOND, [0] * 20)
    assert weak.accuracy == 0.5
    assert {"near 1/2" in line or "no better than a coin" in line for line in weak.warnings} == {True}
    assert len(weak.warnings) == 2
    wrong = audit(CallableOracle(larger), PROMPTS, FIRST, SECOND, torch.ones(20))
    assert wrong.accuracy == 0
    assert len(wrong.warnings) == 1


def test_oracles_over_listed_responses_are_audited_too():
    matrix = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]
    found = audit(MatrixOracle(matrix), None, torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), [1, 1, 1])
    assert found.accuracy == 1
    assert found.decisiveness == pytest.approx((0.4 + 0.2 + 0.3) / 3)


@pytest.mark.parametrize("labels", [[0] * 19, [0.5] * 20, [2] * 20])
def test_labels_are_checked(labels):
    with pytest.raises(BadInput, match="20 pairs needs as many labels"):
        audit(CallableOracle(larger), PROMPTS, FIRST, SECOND, labels)


def test_an_audit_needs_a_pair():
    with pytest.raises(BadInput, match="at least one pair"):
        audit(CallableOracle(larger), [], [], [])
