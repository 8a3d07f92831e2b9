"""What the responses of an update are worth: v(y), estimated from sampled matches or exact over a listed set.

v(y) = g'(r(y)) E_{y'} signal(P(y > y'), g(r(y)) - g(r(y'))) + point(r(y)), y' from the opponent, r = log start/ref,
with signal = P, g' = 1 and point = 0 where the update has no pairwise loss: the same quantity as on a table.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import EnumerableOracle, Game, Itself, Opponent, PairwiseLoss, Policy, Update
from nlhf_zoo.llm.judging import self_play
from nlhf_zoo.llm.matches import Played
from nlhf_zoo.llm.observed import decisiveness
from nlhf_zoo.llm.policy import LanguagePolicy, as_language, same_network
from nlhf_zoo.llm.tokens import PromptBatch, TokenResponses

__all__ = ["Payoffs", "check_samples", "exact_payoff", "leave_one_out", "log_ratio", "opponents_met", "sampled_payoffs"]


def leave_one_out(values: Tensor) -> Tensor:
    """(B, K) the mean of the row's other entries; where it has none, of the other rows; 0 for a single number."""
    if values.shape[-1] > 1:
        return (values.sum(-1, keepdim=True) - values) / (values.shape[-1] - 1)
    return (values.sum(0) - values) / (len(values) - 1) if len(values) > 1 else torch.zeros_like(values)


def log_ratio(
    start: Policy,
    reference: Policy,
    student: LanguagePolicy,
    prompts: PromptBatch,
    responses: TokenResponses,
    student_log_prob: Tensor | None,
) -> Tensor:
    """(B, K) log start/reference of responses, reusing the student's log-probabilities where it is the start."""
    with torch.no_grad():
        own = student_log_prob is not None and same_network(as_language(start), student)
        log_start = student_log_prob if own else as_language(start).log_prob(prompts, responses)
        assert log_start is not None
        return log_start - as_language(reference).log_prob(prompts, responses)


@attrs.frozen(eq=False)
class Payoffs:
    """Estimates of v for K responses a prompt.

    Attributes:
        value: (B, K), unbiased given the response.
        baseline: (B, K), independent of the response that it stands beside.
        tokens: what the opponents generated.
        preference: mean preference over the opponents; `None` against itself, where it is 1/2.
        decided: mean |P - 1/2| over judged pairs of different texts; `None` where there were none, or where answers
            come by coin.
        joined: opponents' responses that learn too, and the (B, K) payoff of each; see `PairwiseLoss.both_learn`.
            Their share, and that of the author's own, is one half.
    """

    value: Tensor
    baseline: Tensor
    tokens: int = 0
    preference: Tensor | None = None
    decided: Tensor | None = None
    joined: tuple[tuple[TokenResponses, Tensor], ...] = ()


def opponents_met(author: LanguagePolicy, update: Update) -> list[LanguagePolicy]:
    """The opponents of an update that answer for themselves, in its order; not the author, who meets its own."""
    if not isinstance(update.opponent, Opponent):
        return []
    opponents = [as_language(policy) for policy, _ in update.opponent.terms]
    return [opponent for opponent in opponents if not same_network(opponent, author)]


def check_samples(author: LanguagePolicy, update: Update, num_samples: int) -> None:
    """One response a prompt will do against another opponent only.

    Raises:
        BadInput: the author meets itself, or a fit compares its responses, and there is one.
    """
    if num_samples > 1 or update.opponent is None:
        return
    others = opponents_met(author, update)
    alone = isinstance(update.opponent, Opponent) and len(others) == len(update.opponent.terms)
    if update.fit is not None or not alone:
        raise BadInput("num_samples: a policy that meets itself needs 2 responses a prompt at least, got 1")


def sampled_payoffs(
    author: LanguagePolicy,
    update: Update,
    game: Game,
    prompts: PromptBatch,
    played: Played,
    ratio: Tensor | None,
    generator: torch.Generator | None,
    *,
    own_match: bool = False,
) -> Payoffs:
    """The worth of K responses that `author` drew: against its own other K - 1, or against K answers of another.

    What the judge has not answered yet is waited for.

    Baselines are signal(1/2, 0) in self-play, which is its mean, and the mean of the prompt's other responses
    otherwise.

    Args:
        ratio: (B, K) r of the responses, where the update has a pairwise loss.
        own_match: whether a self-played response's match with itself counts, as an even one; see `Fit.pairwise`.
    """
    tokens_drawn = played.drawn.tokens
    zero = torch.zeros(tokens_drawn.shape[:2], device=tokens_drawn.device, dtype=torch.float64)
    if update.opponent is None:
        return Payoffs(zero, zero)
    linked, slope, point = (None, 1.0, 0.0) if ratio is None else update.loss.of_single(ratio.double())  # type: ignore[union-attr]
    value, baseline, tokens, preference, decided = zero, zero, 0, None, None
    joined: list[tuple[TokenResponses, Tensor]] = []
    joins = update.loss is not None and update.loss.joins(update)
    drawn = played.drawn.texts
    for match in played.matches:
        weight, answers, judged = match.weight, match.answers, match.judged(generator)
        if answers is None:
            told = decisiveness(judged, [a != b for row in drawn for a in row for b in row])
            off = ~torch.eye(judged.shape[-1], dtype=torch.bool, device=judged.device)
            h = None if linked is None else linked.unsqueeze(-1) - linked.unsqueeze(-2)
            signal = _signal(update.loss, judged, h)
            even = _signal(update.loss, torch.full_like(judged[:1, :1, 0], 0.5), torch.zeros_like(judged[:1, :1, 0]))
            total = torch.where(off, signal, 0.0).sum(-1)
            count = judged.shape[-1]
            mean = (total + even) / count if own_match else total / (count - 1)
            value, baseline = value + weight * mean, baseline + weight * even
        else:
            tokens += int(answers.mask.sum())
            both = zip(drawn, answers.texts, strict=True)
            told = decisiveness(judged, [a != b for pair in both for a, b in zip(*pair, strict=True)])
            h, their_slope = None, 1.0
            if linked is not None:
                theirs = log_ratio(update.start, game.reference, author, prompts, answers, None)
                their_link, their_slope, _ = update.loss.of_single(theirs.double())  # type: ignore[union-attr]
                h = linked - their_link
            mean = _signal(update.loss, judged, h)
            if joins:
                # The pair seen from its other end: signals are odd.
                joined.append((answers, -0.5 * weight * their_slope * mean))
                mean = mean / 2
            value, baseline = value + weight * mean, baseline + weight * leave_one_out(mean)
            preference = judged.mean()
        decided = told if told is not None and not game.oracle.answers_by_coin else decided
    if isinstance(slope, Tensor):
        # An even match's signal is 0 for every pairwise loss, so that no baseline is lost by the slope.
        value, baseline = slope * value, slope * baseline
    if isinstance(point, Tensor):
        value, baseline = value + point, baseline + leave_one_out(point)
    return Payoffs(value, baseline, tokens, preference, decided, tuple(joined))


def _signal(loss: PairwiseLoss | None, preference: Tensor, log_ratio: Tensor | None) -> Tensor:
    if loss is None:
        return preference
    assert log_ratio is not None
    return loss.signal(preference, log_ratio.to(preference.dtype))


def exact_payoff(
    student: LanguagePolicy, update: Update, game: Game, prompts: PromptBatch, responses: TokenResponses
) -> Tensor:
    """(B, Y) v of the update over an enumerated response set: one query of an enumerable oracle.

    An oracle over listed responses is asked for its payoff vector, its responses being taken in the order of
    `responses`; any other oracle is asked about each unordered pair of responses.
    """
    with torch.no_grad():
        if update.opponent is None:
            return torch.zeros(responses.tokens.shape[:2], dtype=torch.float64, device=responses.tokens.device)
        if isinstance(update.opponent, Itself):
            weights = student.table(prompts, responses).exp()
        else:
            tables = [w * as_language(p).table(prompts, responses).exp() for p, w in update.opponent.terms]
            weights = torch.stack(tables).sum(0)
        ratio = None
        if update.loss is not None:
            ratio = as_language(update.start).table(prompts, responses)
            ratio = ratio - as_language(game.reference).table(prompts, responses)
        weights = weights.double()
        linked, slope, point = None, 1.0, 0.0
        if ratio is not None and update.loss is not None:
            linked, slope, point = update.loss.of_single(ratio.double())
        if isinstance(game.oracle, EnumerableOracle):
            shape = (*game.oracle.batch_shape, game.oracle.num_responses)
            kwargs: dict[str, Any] = {"loss": update.loss}
            kwargs["log_ratio"] = None if linked is None else linked.reshape(shape)
            value = game.oracle.payoff(weights.reshape(shape), **kwargs).reshape(weights.shape)
            if update.loss is not None and update.loss.joins(update):
                start = as_language(update.start).table(prompts, responses).double()
                own = game.oracle.payoff(start.exp().reshape(shape), **kwargs).reshape(weights.shape)
                value = (value + (weights.log() - start).exp() * own) / 2
            return slope * value + point
        judged = self_play(game, prompts, responses)
        h = None if linked is None else linked.unsqueeze(-1) - linked.unsqueeze(-2)
        signal = _signal(update.loss, judged, h)
        value = (signal @ weights.unsqueeze(-1)).squeeze(-1)
        if update.loss is not None and update.loss.joins(update):
            start = as_language(update.start).table(prompts, responses).double()
            value = (value + (weights.log() - start).exp() * (signal @ start.exp().unsqueeze(-1)).squeeze(-1)) / 2
        return slope * value + point
