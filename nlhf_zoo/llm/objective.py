"""The loss whose gradient is that of an `Update`: sampled, or exact over an enumerated response set.

Both maximise  J(theta) = E_{y ~ pi_theta} v(y) - sum_j w_j KL(pi_theta || rho_j).  v(y) is the mean over the
opponent's y' of signal(P(y > y'), h(y) - h(y')), the same quantity that a table computes exactly.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import EnumerableOracle, Game, Itself, PairwiseLoss, Policy, ReverseKL, Update
from nlhf_zoo.llm.policy import LanguagePolicy
from nlhf_zoo.llm.tokens import PromptBatch, TokenResponses
from nlhf_zoo.metrics import improvement_value

__all__ = ["Objective", "exact_objective", "exact_payoff", "sampled_objective"]


@attrs.frozen(eq=False)
class Objective:
    """A scalar loss to step on, and what was seen on the way (detached scalars by name)."""

    loss: Tensor
    measured: dict[str, Tensor]
    tokens_generated: int = 0


def sampled_objective(
    student: LanguagePolicy,
    update: Update,
    game: Game,
    prompts: PromptBatch,
    num_samples: int,
    generator: torch.Generator | None,
) -> Objective:
    """REINFORCE with unbiased baselines, on K = `num_samples` >= 2 responses of the student to each prompt.

    A policy of the update whose network is the student's own stands for the student itself, at its weights
    of this moment: as an opponent it is met by self-play among the K responses (each pair judged once), and
    as an anchor its penalty has gradient zero and is left out. A different opponent answers K times, and the
    k-th response meets its k-th answer.

    The estimator of KL(pi || rho) is k1, the log-ratio of the whole sequence, as part of the return; its
    gradient E[(log pi/rho) grad log pi] is that of the divergence. Baselines: for self-play the signal of an
    even match, signal(1/2, 0), which is its mean; otherwise the mean of the prompt's other responses.

    A pairwise loss on self-play pairs has the same gradient, up to the factor `scale` and the number of pairs.
    """
    if not isinstance(game.divergence, ReverseKL):
        raise BadInput(f"language models are regularised by the reverse KL, not by {type(game.divergence).__name__}")
    if num_samples < 2:
        raise BadInput(f"at least 2 samples a prompt are needed for a baseline, got {num_samples}")
    drawn = student.sample(prompts, num_samples, generator)
    log_prob = student.log_prob(prompts, drawn)
    value = log_prob.detach()

    measured: dict[str, Tensor] = {"length": drawn.lengths.float().mean()}
    ratio = None if update.loss is None else _log_ratio(update.start, game.reference, student, prompts, drawn, value)
    if ratio is not None:
        measured["kl_to_reference"] = ratio.mean()
    advantage, met = _against_opponents(student, update, game, prompts, drawn, ratio, generator)
    if met.preference is not None:
        measured["preference"] = met.preference
    returns = torch.zeros_like(value)
    for anchor in update.anchors:
        rho = _language(anchor.policy)
        if same_network(rho, student):
            continue
        with torch.no_grad():
            gap = value - rho.log_prob(prompts, drawn)
        returns = returns - anchor.weight * gap
        measured["kl_to_reference" if anchor.policy is game.reference else "kl_to_anchor"] = gap.mean()
    advantage = advantage + returns - leave_one_out(returns)
    loss = -(advantage * log_prob).mean()
    measured |= {
        "loss": loss.detach(),
        "advantage_std": advantage.std(),
        "log_prob_per_token": value.sum() / drawn.lengths.sum(),
    }
    return Objective(loss, measured, int(drawn.mask.sum()) + met.tokens)


def leave_one_out(values: Tensor) -> Tensor:
    """(B, K) the mean of the row's other entries."""
    return (values.sum(-1, keepdim=True) - values) / (values.shape[-1] - 1)


def same_network(policy: LanguagePolicy, other: LanguagePolicy) -> bool:
    """Whether the two are the same weights in memory."""
    parts, others = policy.parts, other.parts
    return len(parts) == len(others) == 1 and parts[0][0] is others[0][0]


def _language(policy: Policy) -> LanguagePolicy:
    if not isinstance(policy, LanguagePolicy):
        raise BadInput(f"a language model cannot play with a {type(policy).__name__}; give both the same backend")
    return policy


def _log_ratio(
    start: Policy,
    reference: Policy,
    student: LanguagePolicy,
    prompts: PromptBatch,
    responses: TokenResponses,
    student_log_prob: Tensor | None,
) -> Tensor:
    """(B, K) log start/reference of responses, reusing the student's log-probabilities where it is the start."""
    with torch.no_grad():
        own = student_log_prob is not None and same_network(_language(start), student)
        log_start = student_log_prob if own else _language(start).log_prob(prompts, responses)
        assert log_start is not None
        return log_start - _language(reference).log_prob(prompts, responses)


@attrs.frozen(eq=False)
class Met:
    """Tokens that the opponents generated, and the mean preference over them (`None` against itself: 1/2)."""

    tokens: int
    preference: Tensor | None


def _against_opponents(
    student: LanguagePolicy,
    update: Update,
    game: Game,
    prompts: PromptBatch,
    drawn: TokenResponses,
    ratio: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Met]:
    """(B, K) advantage v - baseline, and what the opponents did."""
    itself = isinstance(update.opponent, Itself)
    terms = ((student, 1.0),) if isinstance(update.opponent, Itself) else update.opponent.terms
    total = torch.zeros(drawn.tokens.shape[:2], device=drawn.tokens.device, dtype=torch.float64)
    tokens, preference = 0, None
    for policy, weight in terms:
        opponent = _language(policy)
        if itself or same_network(opponent, student):
            judged = _self_play(game, prompts, drawn, generator)
            off = ~torch.eye(judged.shape[-1], dtype=torch.bool, device=judged.device)
            h = None if ratio is None else ratio.unsqueeze(-1) - ratio.unsqueeze(-2)
            signal = _signal(update.loss, judged, h)
            even = _signal(update.loss, torch.full_like(judged[:1, :1, 0], 0.5), torch.zeros_like(judged[:1, :1, 0]))
            value = torch.where(off, signal, 0.0).sum(-1) / (judged.shape[-1] - 1)
            total = total + weight * (value - even)
        else:
            answers = opponent.sample(prompts, drawn.num_samples, generator)
            tokens += int(answers.mask.sum())
            judged = _paired(game, prompts, drawn, answers, generator)
            h = None
            if ratio is not None:
                h = ratio - _log_ratio(update.start, game.reference, student, prompts, answers, None)
            value = _signal(update.loss, judged, h)
            total = total + weight * (value - leave_one_out(value))
            preference = judged.mean()
    return total, Met(tokens, preference)


def _signal(loss: PairwiseLoss | None, preference: Tensor, log_ratio: Tensor | None) -> Tensor:
    if loss is None:
        return preference
    assert log_ratio is not None
    return loss.signal(preference, log_ratio.to(preference.dtype))


def _ask(
    game: Game, prompts: list[str], first: list[str], second: list[str], generator: torch.Generator | None
) -> Tensor:
    """(N,) P(first > second), judged in the precision that the oracle was loaded in, not in that of the training."""
    oracle, default = game.oracle, torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            answer = oracle.probability(prompts, first, second).double()
    finally:
        torch.set_default_dtype(default)
    if oracle.answers_by_coin:
        answer = torch.bernoulli(answer.cpu(), generator=_on_cpu(generator))
    return answer


def _on_cpu(generator: torch.Generator | None) -> torch.Generator | None:
    # A coin a pair is little work: it is drawn on the CPU, from a seed that the run's generator gives.
    if generator is None or generator.device.type == "cpu":
        return generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))


def _self_play(
    game: Game, prompts: PromptBatch, drawn: TokenResponses, generator: torch.Generator | None = None
) -> Tensor:
    """(B, K, K) P(response i > response j), each unordered pair asked once."""
    count = drawn.num_samples
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    rows = [(b, i, j) for b in range(len(prompts)) for i, j in pairs]
    answer = _ask(
        game,
        [prompts.judged[b] for b, _, _ in rows],
        [drawn.texts[b][i] for b, i, _ in rows],
        [drawn.texts[b][j] for b, _, j in rows],
        generator,
    ).to(drawn.tokens.device)
    judged = torch.full((len(prompts), count, count), 0.5, dtype=torch.float64, device=drawn.tokens.device)
    b, i, j = torch.tensor(rows, device=judged.device).T
    judged[b, i, j] = answer
    judged[b, j, i] = 1 - answer
    return judged


def _paired(
    game: Game,
    prompts: PromptBatch,
    drawn: TokenResponses,
    answers: TokenResponses,
    generator: torch.Generator | None,
) -> Tensor:
    """(B, K) P(response k > the opponent's answer k)."""
    answer = _ask(
        game,
        [text for text in prompts.judged for _ in range(drawn.num_samples)],
        [text for row in drawn.texts for text in row],
        [text for row in answers.texts for text in row],
        generator,
    )
    return answer.to(drawn.tokens.device).reshape(len(prompts), -1)


def exact_payoff(
    student: LanguagePolicy, update: Update, game: Game, prompts: PromptBatch, responses: TokenResponses
) -> Tensor:
    """(B, Y) v of the update over an enumerated response set: one query of an enumerable oracle.

    An oracle over listed responses is asked for its payoff vector, its responses being taken in the order of
    `responses`; any other oracle is asked about each unordered pair of responses.
    """
    with torch.no_grad():
        if isinstance(update.opponent, Itself):
            weights = student.table(prompts, responses).exp()
        else:
            tables = [w * _language(p).table(prompts, responses).exp() for p, w in update.opponent.terms]
            weights = torch.stack(tables).sum(0)
        ratio = None
        if update.loss is not None:
            ratio = _language(update.start).table(prompts, responses)
            ratio = ratio - _language(game.reference).table(prompts, responses)
        weights = weights.double()
        ratio = None if ratio is None else ratio.double()
        if isinstance(game.oracle, EnumerableOracle):
            shape = (*game.oracle.batch_shape, game.oracle.num_responses)
            kwargs: dict[str, Any] = {"loss": update.loss}
            kwargs["log_ratio"] = None if ratio is None else ratio.reshape(shape)
            return game.oracle.payoff(weights.reshape(shape), **kwargs).reshape(weights.shape)
        judged = _self_play(game, prompts, responses)
        h = None if ratio is None else ratio.unsqueeze(-1) - ratio.unsqueeze(-2)
        return (_signal(update.loss, judged, h) @ weights.unsqueeze(-1)).squeeze(-1)


def exact_objective(
    student: LanguagePolicy,
    update: Update,
    game: Game,
    prompts: PromptBatch,
    responses: TokenResponses,
    payoff: Tensor,
) -> Objective:
    """The objective with exact expectations over an enumerated response set, given `exact_payoff`."""
    log_policy = student.table(prompts, responses)
    with torch.no_grad():
        anchors = [(_language(a.policy).table(prompts, responses), a.weight) for a in update.anchors]
    value = improvement_value(log_policy, payoff.to(log_policy.dtype), anchors, game.divergence)
    return Objective(-value.mean(), {"loss": -value.detach().mean()})
