"""How large may Nash-MP's step be, how large should it be, and which rule holds on games that it was not made from?

Theory says eta = 2 beta, practice uses eta = 0.1. All of (beta, eta, kappa, learning rate) is run on tables, in three
forms: "exact" (two improvements by formula a step), "gradient" (the same two, each by `inner` gradient steps on softmax
logits) and "practical" (one gradient step a query against itself, held at a moving average, kappa). What counts is the
queries after which the duality gap stays below a share of what it was at the reference (`SHARES`). Rules are made on
one set of games ("made": random and of low rank) and tried on others ("tried": cycles, Bradley-Terry with a cycle, real
votes and elections where their files are).

Rows of results.csv by `kind`: "grid" is a setting over a set of games: `c` = eta / beta, `rate` the learning rate over
Y, `solved` the games where some setting got there, `reached` the share of them where this one did, `slower` the mean
over them of log2 of its queries over the best setting's (twice the limit where it never got there). "rule" is a rule on
one game; of a game where no setting got there nothing is said.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

import nlhf_zoo as nz
from benchmarks.paper.figures import figure, save
from benchmarks.paper.intervals import mean_interval
from benchmarks.paper.landscape import FORMS, Settings, difference, race
from benchmarks.paper.real_matrices import data_file
from benchmarks.paper.results import Row, write_rows, write_verdict
from nlhf_zoo.games import bradley_terry_cyclic, cyclic, low_rank, random

Floats = NDArray[np.float64]

SHARES = {"exact": 1e-5, "gradient": 1e-3, "practical": 1e-3}
"""The goal: this share of the reference's duality gap. Plain gradients are slow on rare responses, and get less."""
FREE = 1e6
"""As c: an anchor too weak to be felt."""
REAL = ("llmfao_human", "llmfao_gpt4", "preflib_ers_16", "preflib_ers_68", "preflib_glasgow_govan_2007")


@attrs.frozen
class Key:
    """A setting but for beta."""

    c: float
    kappa: float = 1.0
    rate: float = 1.0
    inner: int = 1


@attrs.frozen
class Plan:
    responses: int
    seeds: int
    betas: Mapping[str, Sequence[float]]
    keys: Mapping[str, Sequence[Key]]
    most: Mapping[str, int]
    real: Sequence[str]


RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
ANCHORS = (1.0, 2.0, 4.0, 16.0, 64.0, FREE)
FULL = Plan(
    responses=30,
    seeds=3,
    betas={
        "exact": (0.4, 0.1, 0.025, 0.00625, 0.0015625),
        "gradient": (0.1, 0.025, 0.00625),
        "practical": (0.1, 0.025, 0.00625),
    },
    keys={
        "exact": [Key(c=2 ** (k / 2)) for k in range(-2, 23)],
        "gradient": [Key(c=c, rate=rate, inner=n) for n in (1, 4) for c in ANCHORS for rate in RATES],
        "practical": [Key(*key) for key in itertools.product(ANCHORS, (0.3, 0.1, 0.03, 0.01), RATES)],
    },
    most={"exact": 4000, "gradient": 1500, "practical": 1500},
    real=REAL,
)
QUICK = Plan(
    responses=6,
    seeds=1,
    betas=dict.fromkeys(FORMS, (0.1, 0.025)),
    keys={
        "exact": [Key(c=2.0**k) for k in range(4)],
        "gradient": [Key(c=c, rate=rate) for c in (1.0, 2.0, 4.0) for rate in (0.5, 2.0)],
        "practical": [Key(c=c, kappa=0.1, rate=rate) for c in (1.0, 2.0, 4.0, FREE) for rate in (0.5, 2.0)],
    },
    most=dict.fromkeys(FORMS, 200),
    real=(),
)


@attrs.frozen(eq=False)
class Case:
    """A game of one of the two sets."""

    name: str
    of: str
    matrix: Floats
    log_reference: Floats


Found = Mapping[tuple[str, float, Key], float]
"""(game, beta, setting) -> queries, of one form."""


def run(out: Path, quick: bool) -> None:
    plan = QUICK if quick else FULL
    cases = [*games(plan)]
    check(cases[0])
    rows: list[Row] = []
    for form in FORMS:
        found = searched(plan, form, cases)
        rows += grid_rows(plan, form, cases, found)
        rows += rule_rows(plan, form, cases, found)
    kept = write_rows(out / "results.csv", [{name: row.get(name, "") for name in COLUMNS} for row in rows])
    write_verdict(out / "verdict.json", verdict(kept))
    draw_exact(kept, out / "exact.png")
    draw_practical(kept, out / "practical.png")
    draw_rules(kept, out / "rules.png")


COLUMNS = (
    *("kind", "form", "set", "game", "beta", "c", "kappa", "rate", "inner", "solved", "reached", "slower"),
    *("rule", "setting", "queries", "best"),
)


# Games


def games(plan: Plan) -> Iterator[Case]:
    size = plan.responses
    even = np.full(size, -math.log(size))
    for seed in range(plan.seeds):
        yield Case(f"random {seed}", "made", random(seed=seed, responses=size).matrix().numpy(), even)
        yield Case(f"low_rank {seed}", "made", low_rank(seed=seed, responses=size).matrix().numpy(), even)
    for seed in range(plan.seeds):
        mixed = bradley_terry_cyclic(seed=seed, responses=size, weight=0.5).matrix().numpy()
        yield Case(f"bradley_terry+cyclic {seed}", "tried", mixed, even)
    # Where all are alike nothing is to be learned on a cycle.
    logits = np.random.default_rng(5).normal(size=size)
    yield Case("cyclic", "tried", cyclic(responses=size).matrix().numpy(), logits - np.log(np.exp(logits).sum()))
    for name in plan.real:
        try:
            matrix = nz.read_matrix(data_file(f"pref_{name}.csv.gz")).probabilities.numpy()
        except nz.BadInput as absent:
            print(f"without {name}: {absent}")
            continue
        yield Case(name, "tried", matrix, np.full(len(matrix), -math.log(len(matrix))))


def check(case: Case) -> None:
    """The array copies are the zoo's solver, to rounding.

    Raises:
        ArithmeticError: they are not.
    """
    at = Settings(*map(np.array, ([0.1, 0.025], [0.2, 0.1], [0.1, 0.5], [0.5, 1.0])), inner=2)
    for form in FORMS:
        found = difference(form, case.matrix, case.log_reference, at, steps=20)
        if not found < 1e-10:
            raise ArithmeticError(f"{form}: the copy is off the solver by {found:.1e}")


# Searching


def searched(plan: Plan, form: str, cases: Sequence[Case]) -> Found:
    found: dict[tuple[str, float, Key], float] = {}
    for case, inner in itertools.product(cases, sorted({key.inner for key in plan.keys[form]})):
        points = [(beta, key) for beta in plan.betas[form] for key in plan.keys[form] if key.inner == inner]
        queries = race(form, case.matrix, case.log_reference, settings(points), plan.most[form], SHARES[form])
        found |= {(case.name, *point): float(value) for point, value in zip(points, queries, strict=True)}
    return found


def settings(points: Sequence[tuple[float, Key]]) -> Settings:
    columns = np.array([(beta, key.c * beta, key.kappa, key.rate) for beta, key in points]).T
    return Settings(*columns, inner=points[0][1].inner)


def best(found: Found, name: str, beta: float) -> float:
    return min(value for (game, at, _), value in found.items() if (game, at) == (name, beta))


def slower(queries: float, fastest: float, most: int) -> float:
    """log2 of the ratio; who never got there counts as twice the limit."""
    return math.log2(min(queries, 2 * most) / fastest)


def grid_rows(plan: Plan, form: str, cases: Sequence[Case], found: Found) -> Iterator[Row]:
    fastest = {(case.name, beta): best(found, case.name, beta) for case in cases for beta in plan.betas[form]}
    for of, beta, key in itertools.product(("made", "tried"), plan.betas[form], plan.keys[form]):
        names = [case.name for case in cases if case.of == of and math.isfinite(fastest[case.name, beta])]
        queries = [found[name, beta, key] for name in names]
        lost = [slower(q, fastest[name, beta], plan.most[form]) for q, name in zip(queries, names, strict=True)]
        yield {
            "kind": "grid",
            "form": form,
            "set": of,
            "beta": beta,
            **attrs.asdict(key),
            "solved": len(names),
            "reached": float(np.mean(np.isfinite(queries))) if names else "",
            "slower": float(f"{np.mean(lost):.4g}") if names else "",
        }


# Rules


def rule_rows(plan: Plan, form: str, cases: Sequence[Case], found: Found) -> Iterator[Row]:
    for case, beta in itertools.product(cases, plan.betas[form]):
        fastest = best(found, case.name, beta)
        if not math.isfinite(fastest):
            continue
        for rule, (setting, queries) in ruled(plan, form, cases, found, case, beta).items():
            yield {
                "kind": "rule",
                "form": form,
                "set": case.of,
                "game": case.name,
                "beta": beta,
                "rule": rule,
                "setting": setting,
                "queries": queries if math.isfinite(queries) else "",
                "best": fastest,
                "slower": float(f"{slower(queries, fastest, plan.most[form]):.4g}"),
            }


def ruled(
    plan: Plan, form: str, cases: Sequence[Case], found: Found, case: Case, beta: float
) -> dict[str, tuple[str, float]]:
    """Rule -> what it sets, and the queries that took."""
    families = {
        "theory, eta = 2 beta": [key for key in plan.keys[form] if key.c == 2],
        "eta = c beta": [key for key in plan.keys[form] if key.c < FREE],
        "no anchor": [key for key in plan.keys[form] if key.c == FREE],
    }
    answers: dict[str, tuple[str, float]] = {}
    for rule, keys in families.items():
        if keys:
            key = chosen(plan, form, cases, found, keys, lambda key, _: key)
            answers[rule] = (told(form, key), found[case.name, beta, key])

    def practice(key: Key, beta: float) -> Key:
        return attrs.evolve(key, c=0.1 / beta)

    if form == "exact":
        for rule, c in (
            ("practice, eta = 0.1", 0.1 / beta),
            ("from the game's rotation", by_rotation(case, beta)),
        ):
            queries = race(
                form, case.matrix, case.log_reference, settings([(beta, Key(c))]), plan.most[form], SHARES[form]
            )
            answers[rule] = (f"c={c:.3g}", float(queries[0]))
        answers["adaptive_nash_mp"] = ("", adapted(case, beta, plan.most[form]))
    else:
        # On the grid, 0.1 / beta is there for every beta.
        keys = [key for key in plan.keys[form] if key.c == plan.keys[form][0].c]
        kept = [key for key in keys if key.kappa == 0.1] or keys
        key = chosen(plan, form, cases, found, kept, practice)
        answers["practice, eta = 0.1"] = (told(form, practice(key, beta)), found[case.name, beta, practice(key, beta)])
    return answers


def chosen(plan: Plan, form: str, cases: Sequence[Case], found: Found, keys: Sequence[Key], at: Any) -> Key:
    """The setting of a family that loses least on the games that rules are made from."""
    made = [(case.name, beta) for case in cases if case.of == "made" for beta in plan.betas[form]]
    fastest = {cell: queries for cell in made if math.isfinite(queries := best(found, *cell))}

    def lost(key: Key) -> float:
        cells = [
            slower(found[name, beta, at(key, beta)], fastest[name, beta], plan.most[form]) for name, beta in fastest
        ]
        return float(np.mean(cells))

    return min(keys, key=lost)


def told(form: str, key: Key) -> str:
    parts = [] if key.c == FREE else [f"c={key.c:.3g}"]
    parts += [f"kappa={key.kappa:g}"] if form == "practical" and key.c < FREE else []
    parts += [f"rate={key.rate:g}"] if form != "exact" else []
    return " ".join([*parts, f"inner={key.inner}"] if form == "gradient" else parts)


def by_rotation(case: Case, beta: float) -> float:
    """c of the step s = 1 / (sqrt(2) w): an extragradient step contracts a rotation of angular speed w best there.

    w is the largest frequency of the game's payoffs around the reference, the only policy known before the start;
    s = eta / (beta (1 + eta)) is the step in units of 1 / payoff.
    """
    p = np.exp(case.log_reference)
    spread = (case.matrix - 0.5) @ (np.diag(p) - np.outer(p, p))
    step = 1 / (math.sqrt(2) * float(np.abs(np.linalg.eigvals(spread).imag).max()))
    return min(step / max(1 - step * beta, 1e-6), 2048)


def adapted(case: Case, beta: float, most: int) -> float:
    reference = nz.TabularPolicy(torch.from_numpy(case.log_reference))
    game = nz.Game(nz.MatrixOracle(case.matrix), beta=beta, reference=reference)
    goal = SHARES["exact"] * float(nz.solve(game, "nash_mp", steps=0).history[0]["duality_gap"])
    done = nz.solve(game, "adaptive_nash_mp", queries=most, tol=goal)
    return float(done.queries.total) if done.converged else math.inf


# What came of it


def verdict(rows: list[Row]) -> dict[str, Any]:
    grid, rules = where(rows, kind="grid"), where(rows, kind="rule")
    return {
        "landscape": {form: _landscape(where(grid, form=form)) for form in FORMS},
        "rules": {form: {of: _rules(where(rules, form=form, set=of)) for of in ("made", "tried")} for form in FORMS},
    }


def where(rows: Sequence[Row], **fixed: Any) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in fixed.items())]


def _landscape(rows: list[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for of, beta in itertools.product(("made", "tried"), dict.fromkeys(row["beta"] for row in rows)):
        mine = [row for row in where(rows, set=of, beta=beta) if row["solved"] > 0]
        if not mine:
            found.setdefault(of, {})[f"beta {beta:g}"] = {"games": 0}
            continue
        everywhere = [row["c"] for row in mine if row["reached"] == 1]
        fastest = min(mine, key=lambda row: row["slower"])
        found.setdefault(of, {})[f"beta {beta:g}"] = {
            "games": mine[0]["solved"],
            "largest c that got there in every game": max(everywhere, default=None),
            "settings that got there in every game": float(f"{len(everywhere) / len(mine):.3g}"),
            "fastest": {name: fastest[name] for name in ("c", "kappa", "rate", "inner", "reached", "slower")},
        }
    return found


def _rules(rows: list[Row]) -> dict[str, Any]:
    found = {}
    for rule in dict.fromkeys(row["rule"] for row in rows):
        mine = where(rows, rule=rule)
        by_game = [
            float(np.mean([row["slower"] for row in where(mine, game=name)]))
            for name in dict.fromkeys(row["game"] for row in mine)
        ]
        interval = mean_interval(by_game)
        found[rule] = {
            "settings": sorted({row["setting"] for row in mine}) if rule != "from the game's rotation" else [],
            "games": len(by_game),
            "got there": float(f"{np.mean([row['queries'] != '' for row in mine]):.4g}"),
            "times the best's queries": {name: _power(value) for name, value in interval.items()},
            "worst": _power(max(row["slower"] for row in mine)),
        }
    return found


def _power(value: float | None) -> float:
    assert value is not None
    return float(f"{2**value:.3g}")


# Drawing


def draw_exact(rows: list[Row], path: Path) -> None:
    """Queries over the best's by beta and c, in both sets of games."""
    with figure(9.6, 3.0) as drawn:
        axes, image = drawn.subplots(1, 2), None
        for axis, of in zip(axes, ("made", "tried"), strict=True):
            mine = where(rows, kind="grid", form="exact", set=of)
            betas, cs = axis_values(mine, "beta"), axis_values(mine, "c")
            shown = [[shade(where(mine, beta=beta, c=c)) for c in cs] for beta in betas]
            image = heat(axis, shown, cs, betas)
            axis.set(xlabel="c = η / β", ylabel="β", title=f"exact form, games that rules were {of} on")
            at = range(len(betas))
            axis.plot([place(cs, 2)] * len(betas), at, "w--", label="theory, η = 2β")
            axis.plot([place(cs, 0.1 / beta) for beta in betas], at, "w-", label="practice, η = 0.1")
            for row, beta in enumerate(betas):
                for column, c in enumerate(cs):
                    if where(mine, beta=beta, c=c)[0]["reached"] != 1:
                        axis.plot(column, row, "x", color="#c2410c", markersize=3)
            axis.legend(fontsize=6, labelcolor="white", loc="upper right")
        assert image is not None
        drawn.colorbar(image, ax=axes, label="log2 of queries over the best's")
        save(drawn, path)


def draw_practical(rows: list[Row], path: Path) -> None:
    """Kappa and c at the best rate, and the rate and c at the best kappa, on the games that rules were made on."""
    mine = where(rows, kind="grid", form="practical", set="made")
    betas, cs = axis_values(mine, "beta"), axis_values(mine, "c")
    with figure(3.2 * len(betas), 5.0) as drawn:
        axes, image = drawn.subplots(2, len(betas), squeeze=False), None
        for column, beta in enumerate(betas):
            for axis, name in zip(axes[:, column], ("kappa", "rate"), strict=True):
                values = axis_values(mine, name)
                shown = [[shade(where(mine, beta=beta, c=c, **{name: value})) for c in cs] for value in values]
                image = heat(axis, shown, cs, values)
                axis.set(ylabel="κ, best rate" if name == "kappa" else "learning rate / Y, best κ")
            axes[0][column].set_title(f"practical form, β = {beta:g}")
            axes[1][column].set_xlabel("c = η / β")
        assert image is not None
        drawn.colorbar(image, ax=axes, label="log2 of queries over the best's")
        save(drawn, path)


def draw_rules(rows: list[Row], path: Path) -> None:
    """How much slower each rule is than the best setting of the game, on the games it was not made from."""
    with figure(9.6, 2.8) as drawn:
        axes = drawn.subplots(1, len(FORMS))
        for axis, form in zip(axes, FORMS, strict=True):
            mine = where(rows, kind="rule", form=form, set="tried")
            rules = [*dict.fromkeys(row["rule"] for row in mine)]
            for at, rule in enumerate(rules):
                for missed, marker, colour in ((False, "o", "#0067a6"), (True, "x", "#c2410c")):
                    shown = [row["slower"] for row in where(mine, rule=rule) if (row["queries"] == "") == missed]
                    label = ("did not get there" if missed else "got there") if at == 0 else None
                    axis.plot(shown, [at] * len(shown), marker, color=colour, alpha=0.35, markersize=4, label=label)
            axis.set_yticks(range(len(rules)), rules, fontsize=6)
            axis.set(title=f"{form} form", xlabel="log2 of queries over the best's")
            axis.invert_yaxis()
        axes[0].legend(fontsize=6)
        save(drawn, path)


def axis_values(rows: Sequence[Row], name: str) -> list[float]:
    return sorted({row[name] for row in rows})


def place(values: Sequence[float], wanted: float) -> float:
    """Where on an axis of growing values this one lies, in steps."""
    return float(np.interp(math.log(wanted), np.log(values), range(len(values))))


def shade(rows: Sequence[Row]) -> float:
    """The best of these settings; nothing where no setting got there."""
    return min((row["slower"] for row in rows if row["slower"] != ""), default=math.nan)


def heat(axis: Any, shown: Any, columns: Sequence[float], lines: Sequence[float]) -> Any:
    image = axis.imshow(shown, aspect="auto", cmap="viridis_r", vmin=0, vmax=6, interpolation="nearest")
    every = max(1, len(columns) // 8)
    names = ["none" if value == FREE else f"{value:.3g}" for value in columns]
    axis.set_xticks(range(0, len(columns), every), names[::every], fontsize=6)
    axis.set_yticks(range(len(lines)), [f"{value:.3g}" for value in lines], fontsize=6)
    axis.grid(visible=False)
    return image
