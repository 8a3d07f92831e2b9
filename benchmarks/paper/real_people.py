"""What does the equilibrium of real people look like, how sure is it, and do a Borda count, Elo and it agree?

The llmfao votes of people, GPT-4 and GPT-3.5 on the same pairs of answers of 59 language models, and the ballots of
Glasgow's Govan ward in 2007 (11 candidates). Every electorate is read by three rules: the Borda count (mean share of
wins), Bradley-Terry scores (Elo, but for its scale) and the von Neumann winner (of the largest entropy, where there are
several). "people A" is the people's votes again, one a pair of answers, since several on one pair are not independent,
and as many as GPT-4 has; "people B" has the next vote of each.

Doubt is told in two ways: "votes" draws the pairs of answers again, for all judges alike (the ward's comparisons pair
by pair, as if ballots were not the same people's); "posterior" draws matrices as `compare` does from win counts, where
a pair that nobody compared may be anything. "null" is what luck alone would make of Bradley-Terry preferences at as
many comparisons and ties.

Rows of results.csv by `kind`: "electorate" (one drawn or counted electorate), "judges" (`electorate` judged by
`other`), "response" (a response's mass and how often it is in the support). `draw` -1 is the data itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.paper.electorate import RULES, Opinion, opinion, simulated, three_cycles
from benchmarks.paper.figures import figure, save
from benchmarks.paper.real_data import data_file
from benchmarks.paper.results import Row, write_rows, write_verdict
from benchmarks.paper.votes import Votes, read_votes
from nlhf_zoo.comparison.uncertainty import drawn_matrices
from nlhf_zoo.data import read_matrix

Floats = NDArray[np.float64]

JUDGES = ("human", "gpt4", "gpt3")
WARD = "govan"
HALVES = ("people A", "people B")
ELECTORATES = (*JUDGES, HALVES[0], WARD)
LISTED = 8
"""Responses that results.csv keeps of each electorate, those most often in the support."""
COLUMNS = (
    *("kind", "source", "draw", "electorate", "other", "response"),
    *(f"first_{rule}" for rule in RULES[:2]),
    *("condorcet", "cycles", "support", "effective"),
    *(f"exploited_{rule}" for rule in RULES[:2]),
    *("tau_borda_bt", "tau_borda_vn", "tau_bt_vn"),
    *(f"tau_{rule}" for rule in RULES),
    *(f"lost_{rule}" for rule in (*RULES, "even")),
    *("vn_over_borda", "mass", "low", "high", "in_support"),
)


def run(out: Path, quick: bool) -> None:
    votes, draws = read_votes(JUDGES), 4 if quick else 200
    ward = read_matrix(data_file("pref_preflib_glasgow_govan_2007.csv.gz"))
    assert ward.wins is not None
    assert ward.labels is not None
    rows = [
        *people(votes, draws),
        *alone(WARD, ward.labels, ward.wins.numpy(), 0.0, draws),
    ]
    kept = write_rows(out / "results.csv", [{name: row.get(name, "") for name in COLUMNS} for row in rows])
    write_verdict(out / "verdict.json", verdict(kept))
    draw_winners(kept, out / "winners.png")
    draw_agreement(kept, out / "agreement.png")


# Measuring


def people(votes: Votes, draws: int) -> Iterator[Row]:
    """All judges on the same answers, drawn together; then each alone."""
    generator = np.random.default_rng(0)
    count = len(votes.pairs)
    masses: dict[str, list[Opinion]] = {judge: [] for judge in JUDGES}
    half = np.zeros((0, 0))
    for draw in range(-1, draws):
        even = np.ones(count, dtype=np.int64)
        times = even if draw < 0 else generator.multinomial(count, even / count)
        opinions = {judge: opinion(votes.wins(judge, times)) for judge in JUDGES}
        halves = votes.halves("human", times, generator)
        opinions |= dict(zip(HALVES, map(opinion, halves), strict=True))
        if draw < 0:
            half = halves[0]
        for judge in JUDGES:
            masses[judge].append(opinions[judge])
        for name in ELECTORATES[:4]:
            yield described("votes", draw, name, votes.labels, opinions[name])
        for one, other in [*itertools.permutations(JUDGES, 2), HALVES, ("gpt4", HALVES[0])]:
            yield judged(draw, one, other, opinions[one], opinions[other])
    for judge in JUDGES:
        yield from responses("votes", judge, votes.labels, masses[judge])
        wins = votes.wins(judge, np.ones(count, dtype=np.int64))
        yield from drawn(judge, votes.labels, wins, tied(votes, judge), draws)
    yield from drawn(HALVES[0], votes.labels, half, tied(votes, "human"), draws)


def tied(votes: Votes, judge: str) -> float:
    """Share of a judge's votes."""
    ballots = [vote for pair in votes.ballots[judge] for vote in pair]
    return ballots.count(0.5) / len(ballots)


def alone(name: str, labels: Sequence[str], wins: Floats, ties: float, draws: int) -> Iterator[Row]:
    """An electorate of which only the counts are known."""
    generator = np.random.default_rng(0)
    masses = []
    for draw in range(-1, draws):
        found = opinion(wins if draw < 0 else pairwise_resampled(wins, generator))
        masses.append(found)
        yield described("votes", draw, name, labels, found)
    yield from responses("votes", name, labels, masses)
    yield from drawn(name, labels, wins, ties, draws)


def pairwise_resampled(wins: Floats, generator: np.random.Generator) -> Floats:
    played = np.triu(wins + wins.T, 1)
    won = generator.binomial(played.round().astype(np.int64), np.divide(wins, played, where=played > 0, out=0 * wins))
    return won + (played - won).T


def drawn(name: str, labels: Sequence[str], wins: Floats, ties: float, draws: int) -> Iterator[Row]:
    """Matrices that the counts allow, and counts that Bradley-Terry preferences would have given."""
    matrices = drawn_matrices(torch.from_numpy(wins), 0.5, draws, seed=0).numpy()
    posterior = [opinion(wins, matrix) for matrix in matrices]
    for draw, found in enumerate(posterior):
        yield described("posterior", draw, name, labels, found)
    if name in TITLES:
        yield from responses("posterior", name, labels, [opinion(wins), *posterior])
    generator = np.random.default_rng(1)
    for draw in range(draws):
        yield described("null", draw, name, labels, opinion(simulated(wins, ties, generator)))


def described(source: str, draw: int, name: str, labels: Sequence[str], found: Opinion) -> Row:
    first = {rule: labels[int(found.choices[rule].argmax())] for rule in RULES[:2]}
    return {
        "kind": "electorate",
        "source": source,
        "draw": draw,
        "electorate": name,
        **({f"first_{rule}": label for rule, label in first.items()} if source == "votes" else {}),
        "condorcet": int(found.condorcet),
        "cycles": three_cycles(found.matrix),
        "support": int(found.support.sum()),
        "effective": short(found.effective),
        **{f"exploited_{rule}": short(found.exploited(rule)) for rule in RULES[:2]},
        "tau_borda_bt": short(found.tau("borda", "bradley_terry")),
        "tau_borda_vn": short(found.tau("borda", "von_neumann")),
        "tau_bt_vn": short(found.tau("bradley_terry", "von_neumann")),
    }


def judged(draw: int, one: str, other: str, mine: Opinion, theirs: Opinion) -> Row:
    """What one judge's choices are worth to another: what the best response wins over them beyond 1/2."""
    choices = {**mine.choices, "even": np.full(len(mine.matrix), 1 / len(mine.matrix))}
    lost = {name: float((theirs.matrix @ choice).max() - 0.5) for name, choice in choices.items()}
    return {
        "kind": "judges",
        "source": "votes",
        "draw": draw,
        "electorate": one,
        "other": other,
        **{f"tau_{rule}": short(mine.tau_with(theirs, rule)) for rule in RULES},
        **{f"lost_{name}": short(value) for name, value in lost.items()},
        "vn_over_borda": short(float(choices["von_neumann"] @ theirs.matrix @ choices["borda"]) - 0.5),
    }


def responses(source: str, name: str, labels: Sequence[str], found: Sequence[Opinion]) -> Iterator[Row]:
    """The responses most often in the support, the first of `found` being the data itself."""
    masses = np.array([one.choices["von_neumann"] for one in found])
    present = np.array([one.support for one in found])[1:].mean(0)
    low, high = np.quantile(masses[1:], (0.025, 0.975), axis=0)
    for at in np.lexsort((-masses[0], -present))[:LISTED]:
        yield {
            "kind": "response",
            "source": source,
            "draw": "",
            "electorate": name,
            "response": labels[at],
            "mass": short(masses[0][at]),
            "low": short(low[at]),
            "high": short(high[at]),
            "in_support": short(present[at]),
        }


def short(value: float) -> float:
    return float(f"{value:.4g}")


# What came of it


def verdict(rows: list[Row]) -> dict[str, Any]:
    electorates = [*dict.fromkeys(row["electorate"] for row in rows if row["kind"] == "electorate")]
    pairs = dict.fromkeys((row["electorate"], row["other"]) for row in rows if row["kind"] == "judges")
    return {
        "electorates": {name: _electorate(where(rows, electorate=name)) for name in electorates},
        "judges": {
            f"{one} judged by {other}": _judges(where(rows, kind="judges", electorate=one, other=other))
            for one, other in pairs
        },
        "people agree more with people than GPT-4 with people": _kinship(rows),
    }


def where(rows: Sequence[Row], **fixed: Any) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in fixed.items())]


def _electorate(rows: list[Row]) -> dict[str, Any]:
    of = {source: where(rows, kind="electorate", source=source) for source in ("votes", "posterior", "null")}
    data, again = where(of["votes"], draw=-1)[0], [row for row in of["votes"] if row["draw"] >= 0]
    measures = (
        *("cycles", "support", "effective", "exploited_borda", "exploited_bradley_terry"),
        *("tau_borda_bt", "tau_borda_vn", "tau_bt_vn"),
    )
    return {
        "Condorcet winner": bool(data["condorcet"]),
        "share of draws with a Condorcet winner": {
            source: share(row["condorcet"] for row in drawn)
            for source, drawn in (("votes", again), ("posterior", of["posterior"]), ("null", of["null"]))
        },
        "first": {rule: _first(data, again, rule) for rule in RULES[:2]},
        "first of both the same": {
            "data": data["first_borda"] == data["first_bradley_terry"],
            "share of draws": share(row["first_borda"] == row["first_bradley_terry"] for row in again),
        },
        **{name: spread(data[name], [row[name] for row in again]) for name in measures},
        "posterior": {name: spread(data[name], [row[name] for row in of["posterior"]]) for name in measures},
        "null": {
            name: {
                **spread(data[name], [row[name] for row in of["null"]]),
                "share of null at least as large": share(row[name] >= data[name] for row in of["null"]),
            }
            for name in ("cycles", "support", "exploited_bradley_terry", "tau_borda_bt", "tau_borda_vn")
        },
        "responses": {
            source: [
                {name: row[name] for name in ("response", "mass", "low", "high", "in_support")}
                for row in where(rows, kind="response", source=source)
            ]
            for source in ("votes", "posterior")
        },
    }


def _first(data: Row, again: Sequence[Row], rule: str) -> dict[str, Any]:
    name = f"first_{rule}"
    return {"response": data[name], "share of draws": share(row[name] == data[name] for row in again)}


def _judges(rows: list[Row]) -> dict[str, Any]:
    data, again = where(rows, draw=-1)[0], [row for row in rows if row["draw"] >= 0]
    names = (
        *(f"tau_{rule}" for rule in RULES),
        *(f"lost_{name}" for name in (*RULES, "even")),
        "vn_over_borda",
    )
    return {name: spread(data[name], [row[name] for row in again]) for name in names}


def _kinship(rows: list[Row]) -> dict[str, Any]:
    """tau(people A, people B) - tau(GPT-4, people A), draw by draw, one vote a pair on every side."""
    own, strange = (
        {row["draw"]: row for row in where(rows, kind="judges", electorate=one, other=other)}
        for one, other in (HALVES, ("gpt4", HALVES[0]))
    )
    found = {}
    for rule in RULES:
        name = f"tau_{rule}"
        gained = {draw: own[draw][name] - strange[draw][name] for draw in own}
        found[rule] = spread(gained.pop(-1.0), [*gained.values()])
    return found


def spread(data: float, drawn_values: Sequence[float]) -> dict[str, float]:
    """The data's own value, and the middle 95 % of the draws (whose median need not be the data's value)."""
    low, median, high = np.quantile(drawn_values, (0.025, 0.5, 0.975))
    return {"data": short(data), "low": short(low), "median": short(median), "high": short(high)}


def share(values: Any) -> float:
    return short(float(np.mean([bool(value) for value in values])))


# Drawing

INK = {"human": "#0067a6", "gpt4": "#c2410c", "gpt3": "#b98300", HALVES[0]: "#58b2f2", WARD: "#00805e"}
TITLES: Mapping[str, str] = {"human": "people", "gpt4": "GPT-4", "gpt3": "GPT-3.5", WARD: "Govan ward 2007"}


def draw_winners(rows: list[Row], path: Path) -> None:
    """Mass of the responses most often in the support, under both kinds of doubt."""
    with figure(9.6, 5.4) as drawing:
        axes = drawing.subplots(2, 2)
        for axis, name in zip(axes.flat, TITLES, strict=True):
            for shift, source, alpha in ((-0.18, "votes", 1.0), (0.18, "posterior", 0.45)):
                shown = where(rows, kind="response", electorate=name, source="votes")
                other = {row["response"]: row for row in where(rows, kind="response", electorate=name, source=source)}
                for at, row in enumerate(shown):
                    if (found := other.get(row["response"])) is None:
                        continue
                    look = {"color": INK[name], "alpha": alpha}
                    axis.plot([found["low"], found["high"]], [at + shift] * 2, linewidth=3, **look)
                    axis.plot(found["mass"], at + shift, "|", markersize=9, color="black")
                    axis.text(1.02, at + shift, f"{found['in_support']:.2f}", fontsize=6, va="center", alpha=alpha)
                if source == "votes":
                    axis.set_yticks(range(len(shown)), [str(row["response"])[:28] for row in shown], fontsize=7)
            axis.set(title=TITLES[name], xlim=(0, 1.12))
            axis.invert_yaxis()
        for axis in axes[1]:
            axis.set_xlabel("mass in the von Neumann winner; right: how often in its support")
        save(drawing, path)


def draw_agreement(rows: list[Row], path: Path) -> None:
    """How far the rules agree, whether cycles are more than luck makes, how far judges agree."""
    with figure(9.6, 3.2) as drawing:
        taus, cycles, judges = drawing.subplots(1, 3, width_ratios=(1, 1.1, 1))
        labels = {
            "tau_borda_bt": "Borda,\nElo",
            "tau_borda_vn": "Borda,\nvon Neumann",
            "tau_bt_vn": "Elo,\nvon Neumann",
        }
        for at, name in enumerate(ELECTORATES):
            mine = where(rows, kind="electorate", electorate=name)
            for place, measure in enumerate(labels):
                found = spread(*_values(where(mine, source="votes"), measure))
                title = TITLES.get(name, "people, one vote a pair")
                _whisker(taus, found, place + (at - 2) * 0.15, INK[name], title if place == 0 else None)
            luck = spread(*_values(where(mine, source="votes", draw=-1) + where(mine, source="null"), "cycles"))
            _whisker(cycles, luck, at, INK[name], None)
        taus.set_xticks(range(3), labels.values(), fontsize=7)
        taus.set(title="Kendall's tau between rules", ylim=(0, 1.05))
        taus.legend(fontsize=6, loc="lower left")
        cycles.set_xticks(range(5), ("people", "GPT-4", "GPT-3.5", "people,\none vote", "Govan"), fontsize=7)
        cycles.set(title="strict 3-cycles: data (black), luck (bar)", yscale="symlog", ylim=(-0.3, 2000))
        shown = (HALVES, ("gpt4", HALVES[0]), ("human", "gpt4"), ("human", "gpt3"), ("gpt4", "gpt3"))
        for at, (one, other) in enumerate(shown):
            mine = where(rows, kind="judges", electorate=one, other=other)
            for shift, rule, colour in zip((-0.2, 0, 0.2), RULES, ("#0067a6", "#c2410c", "#00805e"), strict=True):
                _whisker(judges, spread(*_values(mine, f"tau_{rule}")), at + shift, colour, rule if at == 0 else None)
        names = [f"{TITLES.get(one, one)},\n{TITLES.get(other, other)}" for one, other in shown]
        judges.set_xticks(range(len(shown)), names, fontsize=6)
        judges.set(title="Kendall's tau between judges", ylim=(0, 1.05))
        judges.legend(fontsize=6)
        save(drawing, path)


def _values(rows: Sequence[Row], name: str) -> tuple[float, list[float]]:
    return where(rows, draw=-1)[0][name], [row[name] for row in rows if row["draw"] != -1]


def _whisker(axis: Any, found: Mapping[str, float], at: float, colour: str, label: str | None) -> None:
    axis.plot([at, at], [found["low"], found["high"]], color=colour, linewidth=4, alpha=0.6, label=label)
    axis.plot(at, found["data"], "_", color="black", markersize=7)
