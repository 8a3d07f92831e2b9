"""What does the equilibrium of real people look like, how sure is it, and do a Borda count, Elo and it agree?

The llmfao votes of people, GPT-4 and GPT-3.5 on the same pairs of answers of 59 language models, and the ballots of
Glasgow's Govan ward in 2007 (11 candidates). Every electorate is read by three rules: the Borda count (mean share of
wins), Bradley-Terry scores (Elo, but for its scale) and the von Neumann winner (of the largest entropy, where there are
several). "people A" is the people's votes again, one a pair of answers, since several on one pair are not independent,
and as many as GPT-4 has; "people B" has the next vote of each. Nearly half of the pairs of models were never compared;
"core" is the same with the models that all met one another.

Doubt is told in two ways: "votes" draws the pairs of answers again, for all judges alike (the ward's comparisons pair
by pair, as if ballots were not the same people's); "posterior" draws matrices as `compare` does from win counts, where
a pair that nobody compared may be anything. "null" is what luck alone would make of Bradley-Terry preferences at as
many comparisons and ties.

Rows of results.csv by `kind`: "electorate", one of its measures; "judges", what `electorate` would choose, judged by
`other`; "kinship", tau(people A, people B) - tau(GPT-4, people A); "response", the mass of one response in the winner.
`data` is the value of the data itself, `low, median, high` the middle 95 % of the draws of `source` (their median need
not be the data's value: drawing again adds noise), `share` the share of draws with at least that value; of a first
response (`response`) the share that agrees, of a mass the share of draws with it in the support.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.paper.electorate import RULES, Opinion, opinion, simulated, three_cycles
from benchmarks.paper.figures import figure, save
from benchmarks.paper.real_matrices import data_file
from benchmarks.paper.results import Row, write_rows, write_verdict
from benchmarks.paper.votes import Votes, read_votes
from nlhf_zoo.comparison.uncertainty import drawn_matrices
from nlhf_zoo.data import read_matrix

Floats = NDArray[np.float64]

JUDGES = ("human", "gpt4", "gpt3")
WARD = "govan"
HALVES = ("people A", "people B")
CORE = " core"
ELECTORATES = (*JUDGES, HALVES[0], *(judge + CORE for judge in JUDGES), HALVES[0] + CORE, WARD)
LISTED = 8
"""Responses that results.csv keeps of each electorate, those most often in the support."""
COLUMNS = ("kind", "electorate", "other", "source", "measure", "response", "data", "low", "median", "high", "share")
MEASURES = (
    *("condorcet", "cycles", "support", "effective", "strangers", "first_same"),
    *("exploited_borda", "exploited_bradley_terry", "tau_borda_bt", "tau_borda_vn", "tau_bt_vn"),
)
"""Of an electorate; `strangers` is the share of pairs drawn from the winner that nobody compared."""
JUDGED = (*(f"tau_{rule}" for rule in RULES), *(f"lost_{name}" for name in (*RULES, "even")), "vn_over_borda")
"""`lost` is what the other judge's best response wins beyond 1/2 over a rule's choice, or over the even mixture."""
PAIRS = (
    *((HALVES[0], HALVES[1]), ("gpt4", HALVES[0]), ("human", "gpt4"), ("gpt4", "human")),
    *(("human", "gpt3"), ("gpt4", "gpt3")),
)

Measured = dict[str, float]


def run(out: Path, quick: bool) -> None:
    votes, draws = read_votes(JUDGES), 2 if quick else 150
    ward = read_matrix(data_file("pref_preflib_glasgow_govan_2007.csv.gz"))
    assert ward.wins is not None
    assert ward.labels is not None
    rows = [
        *people(votes, draws, ""),
        *people(votes.core(), draws, CORE),
        *alone(WARD, ward.labels, ward.wins.numpy(), draws),
    ]
    kept = write_rows(out / "results.csv", [{name: row.get(name, "") for name in COLUMNS} for row in rows])
    write_verdict(out / "verdict.json", verdict(kept))
    draw_winners(kept, out / "winners.png")
    draw_agreement(kept, out / "agreement.png")


# Measuring


def people(votes: Votes, draws: int, suffix: str) -> Iterator[Row]:
    """All judges on the same answers, drawn together; then each alone. `suffix` goes behind their names."""
    generator = np.random.default_rng(0)
    count = len(votes.pairs)
    even = np.ones(count, dtype=np.int64)
    found: list[dict[str, Opinion]] = []
    half = np.zeros((0, 0))
    for draw in range(draws + 1):
        times = even if draw == 0 else generator.multinomial(count, even / count)
        halves = votes.halves("human", times, generator)
        half = halves[0] if draw == 0 else half
        found.append({judge: opinion(votes.wins(judge, times)) for judge in JUDGES})
        found[-1] |= dict(zip(HALVES, map(opinion, halves), strict=True))
    for one, other in PAIRS:
        across = [judged(opinions[one], opinions[other]) for opinions in found]
        for row in summaries(across, JUDGED):
            yield {"kind": "judges", "electorate": one + suffix, "other": other + suffix, "source": "votes", **row}
    taus = JUDGED[: len(RULES)]
    closer = [
        {name: kin[name] - strange[name] for name in taus}
        for kin, strange in ((judged(of[HALVES[0]], of[HALVES[1]]), judged(of["gpt4"], of[HALVES[0]])) for of in found)
    ]
    for row in summaries(closer, taus):
        yield {"kind": "kinship", "electorate": HALVES[0] + suffix, "other": "gpt4" + suffix, "source": "votes", **row}
    for name in (*JUDGES, HALVES[0]):
        wins = half if name == HALVES[0] else votes.wins(name, even)
        ties = tied(votes, "human" if name == HALVES[0] else name)
        yield from electorate(name + suffix, votes.labels, wins, ties, [of[name] for of in found])


def tied(votes: Votes, judge: str) -> float:
    """Share of a judge's votes."""
    ballots = [vote for pair in votes.ballots[judge] for vote in pair]
    return ballots.count(0.5) / len(ballots)


def alone(name: str, labels: Sequence[str], wins: Floats, draws: int) -> Iterator[Row]:
    """An electorate of which only the counts are known, none of them ties."""
    generator = np.random.default_rng(0)
    found = [opinion(wins), *(opinion(pairwise_resampled(wins, generator)) for _ in range(draws))]
    yield from electorate(name, labels, wins, 0.0, found)


def pairwise_resampled(wins: Floats, generator: np.random.Generator) -> Floats:
    played = np.triu(wins + wins.T, 1)
    won = generator.binomial(played.round().astype(np.int64), np.divide(wins, played, where=played > 0, out=0 * wins))
    return won + (played - won).T


def electorate(name: str, labels: Sequence[str], wins: Floats, ties: float, found: Sequence[Opinion]) -> Iterator[Row]:
    """The rows of one electorate; `found` is the data's opinion and those of its draws."""
    draws = len(found) - 1
    matrices = drawn_matrices(torch.from_numpy(wins), 0.5, draws, seed=0).numpy()
    generator = np.random.default_rng(1)
    sources = {
        "votes": found,
        "posterior": [found[0], *(opinion(wins, matrix) for matrix in matrices)],
        "null": [found[0], *(opinion(simulated(wins, ties, generator)) for _ in range(draws))],
    }
    for source, opinions in sources.items():
        for row in summaries([described(labels, one) for one in opinions], MEASURES):
            yield {"kind": "electorate", "electorate": name, "source": source, **row}
        if source != "null":
            for row in [*firsts(labels, opinions), *masses(labels, opinions)]:
                yield {"electorate": name, "source": source, **row}


def described(labels: Sequence[str], found: Opinion) -> Measured:
    borda, elo = (labels[int(found.choices[rule].argmax())] for rule in RULES[:2])
    return {
        "condorcet": float(found.condorcet),
        "cycles": float(three_cycles(found.matrix)),
        "support": float(found.support.sum()),
        "effective": found.effective,
        "strangers": found.strangers,
        "first_same": float(borda == elo),
        **{f"exploited_{rule}": found.exploited(rule) for rule in RULES[:2]},
        "tau_borda_bt": found.tau("borda", "bradley_terry"),
        "tau_borda_vn": found.tau("borda", "von_neumann"),
        "tau_bt_vn": found.tau("bradley_terry", "von_neumann"),
    }


def judged(mine: Opinion, theirs: Opinion) -> Measured:
    """What one judge's choices are worth to another."""
    choices = {**mine.choices, "even": np.full(len(mine.matrix), 1 / len(mine.matrix))}
    return {
        **{f"tau_{rule}": mine.tau_with(theirs, rule) for rule in RULES},
        **{f"lost_{name}": float((theirs.matrix @ choice).max() - 0.5) for name, choice in choices.items()},
        "vn_over_borda": float(choices["von_neumann"] @ theirs.matrix @ choices["borda"]) - 0.5,
    }


def summaries(measured: Sequence[Any], names: Sequence[str]) -> Iterator[Row]:
    """Of each measure the data's value, which comes first, and the middle of the draws."""
    for name in names:
        data, *drawn = (float(one[name]) for one in measured)
        low, median, high = np.quantile(drawn, (0.025, 0.5, 0.975))
        yield {
            "measure": name,
            **{
                key: short(float(value))
                for key, value in zip(("data", "low", "median", "high"), (data, low, median, high), strict=True)
            },
            "share": short(float(np.mean(drawn if name in FLAGS else np.array(drawn) >= data - 1e-9))),
        }


FLAGS = ("condorcet", "first_same")
"""Measures that hold or not: `share` is of the draws in which they do."""


def firsts(labels: Sequence[str], found: Sequence[Opinion]) -> Iterator[Row]:
    """The first response of the rules that have one."""
    for rule in RULES[:2]:
        data, *drawn = (int(one.choices[rule].argmax()) for one in found)
        agrees = float(np.mean(np.array(drawn) == data))
        yield {"kind": "electorate", "measure": f"first_{rule}", "response": labels[data], "share": short(agrees)}


def masses(labels: Sequence[str], found: Sequence[Opinion]) -> Iterator[Row]:
    """The responses most often in the support."""
    mass = np.array([one.choices["von_neumann"] for one in found])
    present = np.array([one.support for one in found])[1:].mean(0)
    low, median, high = np.quantile(mass[1:], (0.025, 0.5, 0.975), axis=0)
    for at in np.lexsort((-mass[0], -present))[:LISTED]:
        columns = {"data": mass[0], "low": low, "median": median, "high": high, "share": present}
        numbers = {name: short(float(values[at])) for name, values in columns.items()}
        yield {"kind": "response", "measure": "mass", "response": labels[at], **numbers}


def short(value: float) -> float:
    """Three digits, and none of the rounding of zero."""
    return float(f"{value:.3g}") if abs(value) > 1e-9 else 0.0


# What came of it


def verdict(rows: list[Row]) -> dict[str, Any]:
    electorates = dict.fromkeys(row["electorate"] for row in where(rows, kind="electorate"))
    judges = dict.fromkeys((row["electorate"], row["other"]) for row in where(rows, kind="judges"))
    return {
        "electorates": {name: _electorate(where(rows, electorate=name)) for name in electorates},
        "judges": {
            f"{one} judged by {other}": _told(where(rows, kind="judges", electorate=one, other=other))
            for one, other in judges
        },
        "tau(people A, people B) - tau(GPT-4, people A)": {
            name: _told(where(rows, kind="kinship", electorate=name)) for name in (HALVES[0], HALVES[0] + CORE)
        },
    }


def _electorate(rows: list[Row]) -> dict[str, Any]:
    mine = where(rows, kind="electorate")
    (cycles,) = where(mine, source="null", measure="cycles")
    return {
        "first": {
            rule: f"{row['response']} ({row['share']:g} of draws)"
            for rule in RULES[:2]
            for row in where(mine, source="votes", measure=f"first_{rule}")
        },
        "share of draws with a Condorcet winner": {
            row["source"]: row["share"] for row in where(mine, measure="condorcet")
        },
        **{
            source: _told([row for row in where(mine, source=source) if row["measure"] in NUMBERS])
            for source in ("votes", "posterior")
        },
        "cycles": f"{cycles['data']:g}; luck alone {cycles['low']:g} to {cycles['high']:g}",
        "share of luck with as many cycles": cycles["share"],
        "in the support most often": [
            f"{row['response']}: mass {_interval(row)}, in {row['share']:g} of draws"
            for row in where(rows, kind="response", source="votes")[:3]
        ],
    }


NUMBERS = ("support", "strangers", "exploited_borda", "tau_borda_bt", "tau_borda_vn", "tau_bt_vn")


def _told(rows: Sequence[Row]) -> dict[str, str]:
    return {row["measure"]: _interval(row) for row in rows}


def _interval(row: Row) -> str:
    """The data's value, and the middle 95 % of the draws."""
    return f"{row['data']:g} [{row['low']:g}, {row['high']:g}]"


def where(rows: Sequence[Row], **fixed: Any) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in fixed.items())]


# Drawing

TITLES: Mapping[str, str] = {
    "human": "people",
    "gpt4": "GPT-4",
    "gpt3": "GPT-3.5",
    HALVES[0]: "people, one vote",
    "human core": "people, core",
    "gpt4 core": "GPT-4, core",
    "gpt3 core": "GPT-3.5, core",
    HALVES[0] + CORE: "people, one vote, core",
    WARD: "Govan ward 2007",
}
SHOWN = ("human", "gpt4", "gpt3", "human core", "gpt4 core", WARD)


def ink(name: str) -> str:
    colours = {"human": "#0067a6", "gpt4": "#c2410c", "gpt3": "#b98300", HALVES[0]: "#5d50c6", WARD: "#00805e"}
    return colours[name.removesuffix(CORE)]


def draw_winners(rows: list[Row], path: Path) -> None:
    """Mass of the responses most often in the support, under both kinds of doubt."""
    with figure(10.2, 5.4) as drawing:
        axes = drawing.subplots(2, 3)
        for axis, name in zip(axes.flat, SHOWN, strict=True):
            shown = where(rows, kind="response", electorate=name, source="votes")[:6]
            for shift, source, alpha in ((-0.18, "votes", 1.0), (0.18, "posterior", 0.45)):
                found = {row["response"]: row for row in where(rows, kind="response", electorate=name, source=source)}
                for at, row in enumerate(shown):
                    if (mine := found.get(row["response"])) is None:
                        continue
                    axis.plot([mine["low"], mine["high"]], [at + shift] * 2, linewidth=3, color=ink(name), alpha=alpha)
                    axis.plot(mine["data"], at + shift, "|", markersize=9, color="black")
                    axis.text(1.02, at + shift, f"{mine['share']:.2f}", fontsize=6, va="center", alpha=alpha)
            axis.set_yticks(range(len(shown)), [str(row["response"])[:24] for row in shown], fontsize=7)
            axis.set(title=TITLES[name], xlim=(0, 1.16))
            axis.invert_yaxis()
        for axis in axes[1]:
            axis.set_xlabel("mass in the winner (right: how often in it)", fontsize=7)
        save(drawing, path)


def draw_agreement(rows: list[Row], path: Path) -> None:
    """How far the rules agree, whether cycles are more than luck makes, how far judges agree."""
    with figure(10.2, 5.6) as drawing:
        (taus, cycles), (judges, core) = drawing.subplots(2, 2, width_ratios=(1, 1))
        labels = {"tau_borda_bt": "Borda, Elo", "tau_borda_vn": "Borda, von Neumann", "tau_bt_vn": "Elo, von Neumann"}
        shades = ("#0067a6", "#c2410c", "#00805e")
        for at, name in enumerate(ELECTORATES):
            for shift, measure, shade in zip((-0.2, 0, 0.2), labels, shades, strict=True):
                (found,) = where(rows, kind="electorate", electorate=name, source="votes", measure=measure)
                _whisker(taus, found, at + shift, shade, labels[measure] if at == 0 else None)
            (luck,) = where(rows, kind="electorate", electorate=name, source="null", measure="cycles")
            _whisker(cycles, luck, at, ink(name), None)
        names = [TITLES[name].replace(", ", ",\n").replace("ward", "\nward") for name in ELECTORATES]
        for axis in (taus, cycles):
            axis.set_xticks(range(len(names)), names, fontsize=5.5)
        taus.set(title="Kendall's tau between rules", ylim=(0, 1.05))
        taus.legend(fontsize=6, loc="lower left")
        cycles.set(title="strict 3-cycles: data (black), luck alone (bar)", yscale="symlog", ylim=(-0.3, 2000))
        for axis, suffix, of in ((judges, "", "all models"), (core, CORE, "the core")):
            shown = [pair for pair in PAIRS if pair != ("gpt4", "human")]
            for at, (one, other) in enumerate(shown):
                mine = where(rows, kind="judges", electorate=one + suffix, other=other + suffix)
                for shift, rule, shade in zip((-0.2, 0, 0.2), RULES, shades, strict=True):
                    (found,) = where(mine, measure=f"tau_{rule}")
                    _whisker(axis, found, at + shift, shade, rule if at == 0 else None)
            pairs = [f"{JUDGE_NAMES.get(one, one)},\n{JUDGE_NAMES.get(other, other)}" for one, other in shown]
            axis.set_xticks(range(len(shown)), pairs, fontsize=6)
            axis.set(title=f"Kendall's tau between judges, {of}", ylim=(-0.2, 1.05))
        judges.legend(fontsize=6, loc="lower left")
        save(drawing, path)


JUDGE_NAMES = {"human": "people", "gpt4": "GPT-4", "gpt3": "GPT-3.5"}


def _whisker(axis: Any, found: Row, at: float, colour: str, label: str | None) -> None:
    axis.plot([at, at], [found["low"], found["high"]], color=colour, linewidth=4, alpha=0.6, label=label)
    axis.plot(at, found["data"], "_", color="black", markersize=7)
