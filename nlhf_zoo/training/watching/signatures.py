"""How runs fail, and how one sees it: a rule per failure signature, a pure function of the numbers so far.

A rule answers what it has seen, or `None`. The limits are in one place, `Limits`, each with its reason; they are set
for few false alarms rather than for the earliest one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import attrs

from nlhf_zoo.training.watching.history import History, Row, mean_and_error, swings, values

__all__ = ["REMEDIES", "RULES", "Limits", "exploding"]


@attrs.frozen(kw_only=True)
class Limits:
    """Where the line is drawn.

    Attributes:
        sure: standard errors that a change must have before it is taken for one; 4 is one chance in 16,000, and a
            run is looked at some hundred times.
        tiny_kl: nats a response. By Pinsker's inequality a policy nearer to the reference than 0.05 wins at most
            66 % against it, under any judge; noise in the gradients alone moves it by about 0.01.
        still: evaluations in a row that must show a collapse; the run's last one alone is enough.
        early: share of the run in which a policy may still be at its start.
        swings: turns that make an oscillation: up, down, up.
        block: gradient steps that are averaged into one point of a series that may oscillate.
        swing: least size of a swing of a training series, as a share of the series' mean size.
        indecisive: mean |P - 1/2| below which a judge teaches nothing; the audit at the start draws the same line.
        longer: growth of the mean length that counts as rising.
        length_wins: correlation of length and payoff among the answers to one prompt that counts as exploited.
        certain: share of the first entropy a token below which the policy counts as certain of its words.
        alike: share of the first rate of distinct answers below which answers count as alike.
        blow_up: times the median gradient norm, or the largest loss, of the last `remembered` steps.
        harmless: gradient norm or loss that is no explosion, whatever was usual: where a judge seldom decides, most
            gradients are zero up to rounding, and the next that is not is millions of times the median.
        streak: such steps in a row that stop the run; one that is not a number stops it at once.
        remembered: steps that the two are compared with.
        weights: times their norm at the start that the weights may grow to; fine-tuning moves it by percents.
    """

    sure: float = 4.0
    tiny_kl: float = 0.05
    still: int = 3
    early: float = 0.25
    swings: int = 3
    block: int = 10
    swing: float = 0.5
    indecisive: float = 0.02
    longer: float = 1.3
    length_wins: float = 0.3
    certain: float = 0.25
    alike: float = 0.5
    blow_up: float = 1000.0
    harmless: float = 10.0
    streak: int = 3
    remembered: int = 50
    weights: float = 10.0


REMEDIES: Mapping[str, str] = {
    "collapse to the reference": (
        "the pull towards the reference is too strong or the judge too weak: lower beta, raise eta, raise the learning"
        " rate, and read the judge's audit"
    ),
    "oscillation": "the target follows too fast: try a tenth of kappa, or without one a tenth of the learning rate",
    "weak oracle": "the judge prefers nothing, or contradicts itself: ask both orders, and test it on labelled pairs",
    "length exploitation": (
        "the judge pays for length: use one that corrects for it, lower max_new_tokens, or raise beta; compare with"
        " the held-out judge"
    ),
    "entropy collapse": "answers become all the same: raise beta, lower eta or the learning rate, or take more samples",
    "divergence": "lower the learning rate, add warm-up, or clip gradients harder (max_grad_norm)",
}


def collapse_to_the_reference(history: History, limits: Limits) -> str | None:
    """Win rate that is not told from 1/2, at a distance at which it cannot be far from it."""
    rows = history.evaluations[-limits.still :]
    if not rows or (len(rows) < limits.still and rows[-1]["step"] < history.steps):
        return None
    rows = rows[-1:] if rows[-1]["step"] >= history.steps else rows
    near = all(_even(row) and row["kl"] <= limits.tiny_kl for row in rows)
    if not near or rows[0]["step"] < limits.early * history.steps:
        return None
    last = rows[-1]
    return f"win rate {last['win_rate']:.1%} against the reference at a KL of {last['kl']:.2g} nats"


def oscillation(history: History, limits: Limits) -> str | None:
    """The held-out win rate, the loss or the distance goes up, down and up again, each time beyond its noise."""
    lows = values(history.evaluations, "win_rate_low")
    turns = swings(lows, values(history.evaluations, "win_rate_high"))
    if turns >= limits.swings:
        return f"the win rate turned round {turns} times in {len(lows)} evaluations, each time beyond its interval"
    for name in ("loss", "kl_to_reference"):
        turns = _turns(values(history.training[history.window :], name), limits)
        if turns >= limits.swings:
            return f"{name} turned round {turns} times, each time by more than its noise"
    return None


def _turns(series: Sequence[float], limits: Limits) -> int:
    blocks = [series[i : i + limits.block] for i in range(0, len(series) - limits.block + 1, limits.block)]
    if len(blocks) <= limits.swings:
        return 0
    points = [mean_and_error(block) for block in blocks]
    size = statistics.fmean(abs(mean) for mean, _ in points)
    # The error of one block of few values is itself uncertain; the smaller ones would invent swings.
    usual = math.sqrt(statistics.fmean(error**2 for _, error in points))
    half = [limits.sure * max(error, usual) / math.sqrt(2) for _, error in points]
    lows, highs = ([mean + sign * h for (mean, _), h in zip(points, half, strict=True)] for sign in (-1, 1))
    return swings(lows, highs, limits.swing * size)


def weak_oracle(history: History, limits: Limits) -> str | None:
    """The judge finds next to no difference between different answers, nor between the policy and the reference.

    One that tells those two apart has been satisfied: the policy's answers are now as good as each other.
    """
    said, distinct = history.last("decisiveness"), history.last("distinct")
    if distinct and statistics.fmean(distinct) < limits.alike:
        return None
    if history.evaluations and not _even(history.evaluations[-1]):
        return None
    mean, error = mean_and_error(said)
    if len(said) < history.window or mean + limits.sure * error >= limits.indecisive:
        return None
    return f"P is {mean:.2g} from 1/2 in the mean, over the last {len(said)} batches"


def length_exploitation(history: History, limits: Limits) -> str | None:
    """Answers grow, and among answers to one prompt the longer one wins."""
    before, now = history.before("length"), mean_and_error(history.last("length"))
    noise = (before[1] ** 2 + now[1] ** 2) ** 0.5
    if not now[0] - before[0] > max((limits.longer - 1) * before[0], limits.sure * noise):
        return None
    # The last that were defined: when all answers have reached the limit, there is nothing left to correlate.
    pull, error = mean_and_error(values(history.training, "length_correlation")[-4 * history.window :])
    if not pull > max(limits.length_wins, limits.sure * error):
        return None
    return f"length grew from {before[0]:.1f} to {now[0]:.1f} tokens, and its correlation with winning is {pull:.2f}"


def entropy_collapse(history: History, limits: Limits) -> str | None:
    """Log-probability a token rises towards 0 and the answers to one prompt become equal."""
    (before, _), (now, error) = history.before("log_prob_per_token"), mean_and_error(history.last("log_prob_per_token"))
    (differed, _), (differ, doubt) = history.before("distinct"), mean_and_error(history.last("distinct"))
    certain = -now + limits.sure * error < limits.certain * -before
    alike = differ + limits.sure * doubt < limits.alike * differed
    if not (certain and alike):
        return None
    return (
        f"entropy fell from {-before:.2g} to {-now:.2g} nats a token, distinct answers from {differed:.0%} to"
        f" {differ:.0%}"
    )


def _even(evaluation: Row) -> bool:
    """Whether the win rate is not told from 1/2."""
    return evaluation["win_rate_low"] <= 0.5 <= evaluation["win_rate_high"]


RULES: Mapping[str, Callable[[History, Limits], str | None]] = {
    "collapse to the reference": collapse_to_the_reference,
    "oscillation": oscillation,
    "weak oracle": weak_oracle,
    "length exploitation": length_exploitation,
    "entropy collapse": entropy_collapse,
}


def exploding(name: str, series: Sequence[float], limits: Limits) -> str | None:
    """Whether the last of a series of sizes is beyond all that was there before, which begins with enough steps."""
    *before, now = series[-limits.remembered - 1 :]
    if len(before) < 8:
        return None
    usual = statistics.median(before) if name == "gradient norm" else max(before)
    explodes = now > max(limits.harmless, limits.blow_up * usual) and usual > 0
    return f"{name} {now:.3g}, {now / usual:.0f} times the usual" if explodes else None
