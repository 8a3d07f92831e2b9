"""From the demo's numbers to its page: what to show, and what may be said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from nlhf_zoo.demo import language
from nlhf_zoo.demo.games import BETA, ETAS, RESPONSES, Play
from nlhf_zoo.demo.language_play import LanguagePlay
from nlhf_zoo.demo.tournament import expectation, kind_shares, pairwise, pure_answers, wins
from nlhf_zoo.intervals import wilson_interval
from nlhf_zoo.report import Report
from nlhf_zoo.report.convergence import Measured
from nlhf_zoo.report.markup import number
from nlhf_zoo.report.words import reading

__all__ = ["add_games", "add_language"]

LEADER = "nash_mp"
TARGET = 1e-8
SHOWN_SAMPLES = 6


def add_games(report: Report, proved: Play, tuned: Play, queries: int, seeds: int) -> None:
    """The tabular sections: step sizes as proved, step sizes as tuned, the game itself."""
    where = f"{seeds} low-rank games (rank 2, {RESPONSES} responses, β = {BETA:g}, uniform reference)"
    drawn = proved.measured()
    _judge_games(report, proved, queries, "with the step sizes that theory gives")
    _judge_bounds(report, drawn)
    report.add_measured(
        drawn,
        title="Five solvers, step sizes as proved",
        note=f"Five solvers on {where}, one a seed, each stopped at {queries:,} exact oracle queries. Every solver"
        " runs with the step size that its theory asks for, so that its bound can be drawn over what it did.",
    )
    _judge_games(report, tuned, queries, "with tuned step sizes")
    sizes = ", ".join(f"{name} {eta:g}" for name, eta in tuned.etas.items())
    report.add_measured(
        tuned.measured(),
        title="Five solvers, step sizes tuned",
        note="The same games and the same count of queries. Each solver now has the step size out of"
        f" {', '.join(f'{eta:g}' for eta in ETAS)} that did best on games of other seeds: {sizes}.",
    )
    game = proved.game
    assert game.matrix is not None
    assert game.equilibrium is not None
    labels, probabilities = [f"response {name}" for name in game.labels], game.equilibrium.tolist()
    report.add_matrix(
        labels,
        game.matrix.tolist(),
        probabilities,
        title="One of the games",
        note="Who beats whom in the game of the first seed, responses in the order of their equilibrium probability.",
    )
    finals = {"equilibrium": probabilities}
    finals |= {name: policy.tolist() for name, policy in proved.finals.items() if name in (LEADER, "online_dpo")}
    report.add_distribution(
        labels,
        finals,
        title="Its equilibrium, and where two solvers ended",
        note="The equilibrium is computed by Newton's method, independently of the solvers.",
        most=12,
    )


def _judge_games(report: Report, play: Play, queries: int, how: str) -> None:
    others = [name for name in play.finals if name != LEADER]
    reached = {name: play.queries_to(name, TARGET) for name in play.finals}
    first = min(others, key=lambda name: reached[name])
    ends = {name: median(play.final(name, "duality_gap")) for name in play.finals}
    nearest = min(others, key=lambda name: ends[name])
    mine = f"Nash-MP ends at a median duality gap of {reading(ends[LEADER])}"
    if math.isfinite(reached[LEADER]):
        mine = f"Nash-MP reaches a duality gap of 10⁻⁸ after {reached[LEADER]:,.0f} queries"
    rest = f"the next, {first}, after {reached[first]:,.0f}"
    if not math.isfinite(reached[first]):
        rest = f"none of the other four does in {queries:,} ({nearest} comes to {reading(ends[nearest])})"
    ahead = reached[LEADER] < reached[first] or (reached[LEADER] == reached[first] and ends[LEADER] < ends[nearest])
    report.add_verdict(f"Games, {how}: {mine}; {rest}. Medians over the games.", "good" if ahead else "bad")


def _judge_bounds(report: Report, measured: Mapping[str, Measured]) -> None:
    checks = [check for found in measured.values() for check in found.checks]
    points, broken = sum(check.points for check in checks), sum(check.broken for check in checks)
    names = ", ".join(dict.fromkeys(check.solver for check in checks))
    outcome = (
        f"{broken:,} of {points:,} measured iterates lie above" if broken else f"all {points:,} measured iterates obey"
    )
    report.add_verdict(
        f"Games, with the step sizes that theory gives: {outcome} the bound that their solver claims ({names}).",
        "bad" if broken else "good",
    )


def add_language(report: Report, play: LanguagePlay) -> None:
    """The language-model sections: win rates, everyone against everyone, kinds, samples, cost."""
    rows = _win_rows(play)
    report.add_win_rates(
        rows,
        title="A language model: win rates against the reference",
        note=f"A byte-level Llama of {play.fit.parameters:,} parameters, fitted to sentences that paint a place by its"
        " light, its sounds or its movement, then trained against a judge for whom light beats sound, sound beats"
        f" movement and movement beats light. Answers to {len(play.prompts)} prompts that it was never trained on."
        f" Both solvers train with the same batches, learning rate and β = {play.scale.beta:g}."
        " The second judge is never trained against. There can be no high win rate for everybody here: the game has"
        " no best kind of answer, and the equilibrium's own strength is that nothing beats it.",
    )
    expected = expectation(play.prompts, play.answers["reference"], play.scale.beta)
    _judge_win_rates(report, rows, expected.win_rate)
    _add_tournament(report, play, expected.worst)
    _add_kinds(report, play, expected.kinds)
    if play.logs:
        report.add_curves(
            "Win rate while training",
            play.logs,
            x="step",
            y="win_rate",
            x_title="Training step",
            y_title="Win rate against the reference",
            percent=True,
            note="Measured on the held-out prompts, one answer each, under the judge of the training: a rough figure,"
            f" give or take {1 / len(play.prompts) ** 0.5:.0%}. The final figures above are from many more answers.",
        )
    report.add_samples(
        _samples(play), title="Samples to read", note="The first answer of each policy; nothing was picked."
    )
    report.add_table(
        "What the models cost",
        ["Model", "Seconds"],
        [[name, seconds] for name, seconds in play.seconds.items()],
        note="The reference is fitted to examples of the language; on prompts that it never saw it needs"
        f" {number(play.fit.held_out_loss)} nats a token. Each policy is then trained from it.",
    )


def _win_rows(play: LanguagePlay) -> list[dict[str, Any]]:
    judges = {"training judge": language.judge, "second judge": language.second_judge}
    rows = []
    for name in play.trained:
        for judge_name, judge in judges.items():
            won, comparisons = wins(judge, play.prompts, play.answers[name], play.answers["reference"])
            rows.append({"policy": name, "judge": judge_name, "wins": won, "comparisons": comparisons})
    return rows


def _judge_win_rates(report: Report, rows: Sequence[Mapping[str, Any]], expected: float) -> None:
    mine, *others = [row for row in rows if row["judge"] == rows[0]["judge"]]
    low, high = wilson_interval(mine["wins"], mine["comparisons"])
    rest = "".join(f" {row['policy']} wins {row['wins'] / row['comparisons']:.1%}," for row in others)
    report.add_verdict(
        f"Language model: Nash-MP wins {mine['wins'] / mine['comparisons']:.1%} against the reference (95 % interval"
        f" {low:.1%} to {high:.1%});{rest} and the equilibrium itself would win {expected:.1%}.",
        "good" if low > 0.5 else "bad",
    )


def _add_tournament(report: Report, play: LanguagePlay, expected: float) -> None:
    count = len(play.answers["reference"][0])
    pure = {f"only {kind}": pure_answers(play.prompts, kind, count, seed=at) for at, kind in enumerate(language.KINDS)}
    players = {**play.answers, **pure}
    names, rates = list(players), pairwise(language.judge, play.prompts, players)
    report.add_matrix(
        names,
        rates,
        title="Everyone against everyone",
        note="The rows “only …” are well-formed answers of one kind alone: the simplest opponents that could find a"
        " policy's weak side. A policy at the equilibrium of the unregularised game would lose to none of them.",
    )
    worst = {
        name: max((rates[names.index(rival)][names.index(name)], rival) for rival in pure) for name in play.answers
    }
    parts = [f"{name} {rate:.1%} ({rival})" for name, (rate, rival) in worst.items()]
    best = min(rate for name, (rate, _) in worst.items() if name != LEADER)
    low, high = wilson_interval(best * count * len(play.prompts), count * len(play.prompts))
    mine = worst[LEADER][0]
    side, sign = ("about as good as the best of the others", "note")
    if not low <= mine <= high:
        side, sign = ("better than the others", "good") if mine < low else ("worse than the best of the others", "bad")
    report.add_verdict(
        f"Language model, how often the worst pure opponent beats each policy: {', '.join(parts)}; the equilibrium"
        f" {expected:.1%}. Less is better; Nash-MP is {side}.",
        sign,
    )


def _add_kinds(report: Report, play: LanguagePlay, expected: Mapping[str, float]) -> None:
    shares = {name: kind_shares(answers) for name, answers in play.answers.items()}
    columns = [*language.KINDS, "other"]
    report.add_distribution(
        columns,
        {"equilibrium": [expected[kind] for kind in columns]}
        | {name: [share[kind] for kind in columns] for name, share in shares.items()},
        title="Which kinds of answer each policy gives",
        note="The equilibrium is that of the regularised game on the answers which the reference gives, computed"
        " exactly; a policy that learns the game should come near it.",
    )
    distances = {name: sum(abs(share[k] - expected[k]) for k in columns) / 2 for name, share in shares.items()}
    parts = [f"{name} {distance:.2f}" for name, distance in distances.items()]
    nearest = min(distances, key=lambda name: distances[name])
    report.add_verdict(
        "Language model, distance of the kinds of answer from the equilibrium's (total variation, 0 to 1):"
        f" {', '.join(parts)}. {nearest} is nearest.",
        "good" if nearest == LEADER else "bad",
    )


def _samples(play: LanguagePlay) -> list[dict[str, Any]]:
    samples = []
    for at, prompt in enumerate(play.prompts[:SHOWN_SAMPLES]):
        texts = {name: answers[at][0] for name, answers in play.answers.items()}
        reference = texts["reference"]
        remarks = {"reference": _kind(reference)}
        for name in play.trained:
            rate = float(language.judge([prompt], [texts[name]], [reference])[0])
            remarks[name] = f"{_kind(texts[name])}; beats the reference's with {rate:.0%}"
        samples.append({"prompt": prompt, "answers": texts, "remarks": remarks})
    return samples


def _kind(text: str) -> str:
    return language.kind_of(text) or "mixed"
