"""The loss whose gradient is that of an `Update`: sampled, or exact over an enumerated response set.

Both maximise  J(theta) = E_{y ~ pi_theta} v(y) - sum_j w_j D_f(pi_theta || rho_j).  v(y) is the mean over the
opponent's y' of signal(P(y > y'), h(y) - h(y')), the same quantity that a table computes exactly.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Divergence, Fit, Game, Itself, ReverseKL, Update
from nlhf_zoo.llm.judging import Judging
from nlhf_zoo.llm.matches import play
from nlhf_zoo.llm.observed import distinct_pairs, length_correlation
from nlhf_zoo.llm.payoffs import Payoffs, check_samples, leave_one_out, log_ratio, sampled_payoffs
from nlhf_zoo.llm.policy import LanguagePolicy, as_language, same_network
from nlhf_zoo.llm.tokens import PromptBatch, TokenResponses
from nlhf_zoo.metrics import improvement_value, kl_divergence

__all__ = ["Objective", "exact_objective", "measured_distances", "sampled_objective"]

_STEEPEST = 1e30


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
    *,
    chunks: int = 1,
) -> Objective:
    """REINFORCE with unbiased baselines, on K = `num_samples` responses of the student to each prompt.

    K >= 2 where the policy meets itself or the update has a `fit`; K = 1 will do against another opponent, with
    the batch's other prompts for a baseline.

    A policy of the update whose network is the student's own stands for the student itself, at its weights
    of this moment: as an opponent it is met by self-play among the K responses (each pair judged once), and
    as an anchor its penalty has gradient zero and is left out. A different opponent answers K times, and the
    k-th response meets its k-th answer.

    The gradient of D_f(pi || rho) is E[f'(pi/rho) grad log pi]: f' of the whole sequence's ratio is part of the
    return. Under the reverse KL that is the estimator k1, the log-ratio; under others its variance can be large, and
    what is reported as `kl_to_...` is the reverse KL all the same. Baselines: for self-play the signal of an
    even match, signal(1/2, 0), which is its mean; otherwise the mean of the prompt's other responses.

    A pairwise loss on self-play pairs has the same gradient, up to the factor `scale` and the number of pairs.
    An update with a `fit` is minimised by that loss instead, on responses of its start.

    Args:
        chunks: parts of the batch that are generated in turn; see `nlhf_zoo.llm.matches.play`.
    """
    check_samples(student, update, num_samples)
    if update.fit is not None:
        return _fitted(student, update, update.fit, game, prompts, num_samples, generator, chunks)
    with Judging(game) as judging:
        played = play(student, update, judging, prompts, num_samples, generator, chunks=chunks)
        drawn = played.drawn
        by_token = student.token_log_prob(prompts, drawn)
        log_prob = by_token.sum(-1)
        value = log_prob.detach()

        measured = {"length": drawn.lengths.float().mean()} | engine_mismatch(drawn, by_token)
        ratio = None if update.loss is None else log_ratio(update.start, game.reference, student, prompts, drawn, value)
        if ratio is not None:
            measured["kl_to_reference"] = ratio.mean()
        met = sampled_payoffs(student, update, game, prompts, played, ratio, generator)
    advantage = met.value - met.baseline
    measured |= _seen(drawn, met)
    returns = torch.zeros_like(value)
    for anchor, kind in zip(update.anchors, update.divergences(game), strict=True):
        rho = as_language(anchor.policy)
        if same_network(rho, student):
            continue
        with torch.no_grad():
            gap = value - rho.log_prob(prompts, drawn)
        returns = returns - anchor.weight * _slope(kind, gap)
        measured["kl_to_reference" if anchor.policy is game.reference else "kl_to_anchor"] = gap.mean()
    advantage = advantage + returns - leave_one_out(returns)
    loss = -(advantage * log_prob).mean()
    for joined, worth in met.joined:
        loss = loss - (worth * student.log_prob(prompts, joined)).mean()
    measured |= {
        "loss": loss.detach(),
        "advantage_std": advantage.std(correction=min(1, advantage.numel() - 1)),
        "log_prob_per_token": value.sum() / drawn.lengths.sum(),
    }
    return Objective(loss, measured, int(drawn.mask.sum()) + met.tokens)


def engine_mismatch(drawn: TokenResponses, by_token: Tensor) -> dict[str, Tensor]:
    """Mean |log-probability by the engine - by the policy| over the tokens drawn; empty where they are one."""
    if drawn.log_probs is None:
        return {}
    gap = (by_token.detach().float() - drawn.log_probs).abs()
    return {"engine_mismatch": gap.sum() / drawn.mask.sum()}


def _seen(drawn: TokenResponses, met: Payoffs) -> dict[str, Tensor]:
    """What tells the state of a training, where it was seen in this batch."""
    seen: dict[str, Tensor | None] = {"preference": met.preference, "decisiveness": met.decided}
    if drawn.finished is not None:
        seen["unfinished"] = 1 - drawn.finished.float().mean()
    if drawn.num_samples > 1:
        seen |= {"distinct": distinct_pairs(drawn.texts)} | length_correlation(drawn.lengths, met.value)
    return {name: value for name, value in seen.items() if value is not None}


def _slope(divergence: Divergence, gap: Tensor) -> Tensor:
    """(B, K) f'(pi/rho) up to a constant, which the baseline takes away: the log-ratio itself under the reverse KL."""
    if isinstance(divergence, ReverseKL):
        return gap
    # The ratio of long responses overflows: exp(89) is no float32. The cut keeps the loss finite and is no control
    # of variance, for which a slope of 1e30 would be far too late.
    return divergence.derivative_of_log(gap.double()).clamp(-_STEEPEST, _STEEPEST).to(gap.dtype)


def _fitted(
    student: LanguagePolicy,
    update: Update,
    fit: Fit,
    game: Game,
    prompts: PromptBatch,
    num_samples: int,
    generator: torch.Generator | None,
    chunks: int,
) -> Objective:
    """The loss of a `Fit` on K responses a prompt of the update's start, or of the student for an on-policy fit."""
    _only_reverse_kl(update, game)
    start = as_language(update.start)
    author = student if fit.on_policy or same_network(start, student) else start
    with Judging(game) as judging:
        played = play(author, update, judging, prompts, num_samples, generator, chunks=chunks)
        drawn = played.drawn
        by_token = student.token_log_prob(prompts, drawn)
        log_prob = by_token.sum(-1)
        value = log_prob.detach()
        measured = {"length": drawn.lengths.float().mean()}
        if author is student:
            measured |= engine_mismatch(drawn, by_token)
        gap = torch.zeros_like(value)
        for anchor in update.anchors:
            rho = as_language(anchor.policy)
            with torch.no_grad():
                held = value if same_network(rho, student) else rho.log_prob(prompts, drawn)
            gap = gap + anchor.weight * (log_prob - held)
            if anchor.policy is game.reference:
                measured["kl_to_reference"] = (value - held).mean()
        met = sampled_payoffs(author, update, game, prompts, played, None, generator, own_match=fit.pairwise)
    measured |= _seen(drawn, met)
    loss = fit.loss(gap, met.value.to(gap.dtype), update.weight).mean()
    measured |= {"loss": loss.detach(), "log_prob_per_token": value.sum() / drawn.lengths.sum()}
    return Objective(loss, measured, int(drawn.mask.sum()) + met.tokens)


def _only_reverse_kl(update: Update, game: Game) -> None:
    if not all(isinstance(kind, ReverseKL) for kind in update.divergences(game)):
        raise BadInput(f"{type(update.fit).__name__} knows the answer of an update under the reverse KL only")


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
    payoff = payoff.to(log_policy.dtype)
    with torch.no_grad():
        held = [as_language(anchor.policy).table(prompts, responses) for anchor in update.anchors]
    if update.fit is not None:
        _only_reverse_kl(update, game)
        with torch.no_grad():
            author = log_policy if update.fit.on_policy else as_language(update.start).table(prompts, responses)
        weights = [anchor.weight for anchor in update.anchors]
        gap = torch.stack([w * (log_policy - rho) for w, rho in zip(weights, held, strict=True)]).sum(0)
        loss = update.fit.loss(gap, payoff, update.weight, author.detach().exp()).mean()
        return Objective(loss, {"loss": loss.detach()})
    weights = [anchor.weight for anchor in update.anchors]
    value = improvement_value(log_policy, payoff, list(zip(held, weights, update.divergences(game), strict=True)))
    return Objective(-value.mean(), {"loss": -value.detach().mean()})


def measured_distances(
    update: Update,
    answer: LanguagePolicy,
    prompts: PromptBatch,
    *,
    responses: TokenResponses | None = None,
    num_samples: int = 2,
    generator: torch.Generator | None = None,
) -> tuple[dict[str, float], int]:
    """The divergences KL(p || q) that an update asks for, now that `answer` is there, and the tokens they took.

    Means over the prompts. Exact over an enumerated set; otherwise the estimator k3, q/p - 1 - log q/p, over K
    responses of p a prompt, with the mean's standard error under "NAME_error". Each p answers once for all the
    distances that begin at it.
    """
    found: dict[str, float] = {}
    drawn: list[tuple[LanguagePolicy, TokenResponses]] = []
    with torch.no_grad():
        for name, pair in update.distances.items():
            first, second = (answer if isinstance(end, Itself) else as_language(end) for end in pair)
            if responses is not None:
                table = first.table(prompts, responses), second.table(prompts, responses)
                found[name] = float(kl_divergence(*table).mean())
                continue
            sample = next((texts for author, texts in drawn if author is first), None)
            if sample is None:
                sample = first.sample(prompts, num_samples, generator)
                drawn.append((first, sample))
            log_ratio_back = (second.log_prob(prompts, sample) - first.log_prob(prompts, sample)).double()
            # q/p - 1 has mean 0; with it every term is non-negative, and small where the two are near (k3).
            gap = log_ratio_back.expm1() - log_ratio_back
            found[name] = float(gap.mean())
            # Responses to one prompt are no independent draws of the prompt: the error is that of prompt means.
            spread = gap.mean(-1) if len(gap) > 1 else gap.flatten()
            found[f"{name}_error"] = float(spread.std() / len(spread) ** 0.5)
    return found, sum(int(sample.mask.sum()) for _, sample in drawn)
