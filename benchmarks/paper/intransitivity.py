"""From which share of intransitivity on does a Nash solver beat Online DPO, and by how much?

P = (1 - weight) x Bradley-Terry + weight x cycle; everything else stays as it is. Two parts. "target" compares what
the two are made for, free of steps and budgets: the equilibrium, and the policy where Online DPO comes to rest
(`dpo_target`), at the same beta and at equal KL from the reference (DPO's own beta is then chosen for that), with
offline DPO, on pairs from the reference, as a third. "exact" and "sampled" are runs by `nz.compare` at equal budgets of
queries, hyperparameters tuned on seeds of their own.

Columns of results.csv: part, beta, weight, seed, solver; dpo_beta, DPO's own ("target" only); gap, the regularised
duality gap; exploited, what the best response of all wins over it beyond 1/2; kl to the reference; over_dpo, its plain
win rate over Online DPO at the same beta, less 1/2; over_equal and over_offline, the same over either DPO at equal KL
("target" only).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

import nlhf_zoo as nz
from benchmarks.paper.dpo_target import at_distance, rest_at
from benchmarks.paper.figures import figure, save
from benchmarks.paper.intervals import mean_interval
from benchmarks.paper.results import Row, write_rows, write_verdict
from nlhf_zoo.atomic import write_text
from nlhf_zoo.games import bradley_terry_cyclic
from nlhf_zoo.metrics import duality_gap, kl_divergence

Floats = NDArray[np.float64]

NASH, DPO = "equilibrium", "online_dpo"
EQUAL, OFFLINE = "online_dpo at equal KL", "offline dpo at equal KL"
RIVALS = (DPO, EQUAL, OFFLINE)
WINS = {
    "wins over Online DPO, same beta": "over_dpo",
    "wins over Online DPO, equal KL": "over_equal",
    "wins over offline DPO, equal KL": "over_offline",
}
COMPARISONS = 4


@attrs.frozen
class Plan:
    """The size of the study.

    Attributes:
        run_weights, run_betas, run_seeds: of the runs; the targets cost less, and have more.
        payoffs: asked for in each run.
        steps: every solver's grid, in units of 1 / payoff.
    """

    responses: int
    weights: Sequence[float]
    run_weights: Sequence[float]
    betas: Sequence[float]
    run_betas: Sequence[float]
    seeds: int
    run_seeds: int
    payoffs: int
    steps: Sequence[float]


FULL = Plan(
    responses=50,
    weights=(0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
    run_weights=(0, 0.3, 0.6, 1),
    betas=(0.1, 0.03, 0.01),
    run_betas=(0.1, 0.01),
    seeds=12,
    run_seeds=5,
    payoffs=400,
    steps=(0.1, 0.5, 2.0, 8.0, 32.0),
)
QUICK = Plan(
    responses=8,
    weights=(0, 0.5),
    run_weights=(0.5,),
    betas=(0.1, 0.03),
    run_betas=(0.1,),
    seeds=2,
    run_seeds=2,
    payoffs=20,
    steps=(0.5, 2.0),
)


def run(out: Path, quick: bool) -> None:
    plan = QUICK if quick else FULL
    rows = [*targets(plan)]
    for beta, comparisons in itertools.product(plan.run_betas, (None, COMPARISONS)):
        rows += runs(plan, beta, out, comparisons)
    kept = write_rows(out / "results.csv", rows)
    write_verdict(out / "verdict.json", verdict(kept))
    draw_targets(kept, out / "targets.png")
    draw_runs(kept, out / "runs.png")


# What the two are made for


def targets(plan: Plan) -> Iterator[Row]:
    for weight, seed in itertools.product(plan.weights, range(plan.seeds)):
        oracle = bradley_terry_cyclic(seed=seed, responses=plan.responses, weight=weight)
        matrix, reference = oracle.matrix().numpy(), drawn_reference(plan.responses, seed)
        rest = None
        for beta in plan.betas:
            game = nz.Game(oracle, beta=beta, reference=nz.TabularPolicy(torch.from_numpy(reference)))
            best = nz.equilibrium(game).log_probs.numpy()
            rest = rest_at(matrix, reference, beta, rest)
            far = kl(best, reference)
            equal = at_distance(matrix, reference, far)
            offline = at_distance(matrix, reference, far, online=False)
            found = {
                NASH: (best, ""),
                DPO: (rest.log_probs, beta),
                EQUAL: (equal.log_probs, equal.beta),
                OFFLINE: (offline.log_probs, offline.beta),
            }
            for solver, (policy, own_beta) in found.items():
                yield {
                    "part": "target",
                    "beta": beta,
                    "weight": float(weight),
                    "seed": seed,
                    "solver": solver,
                    "dpo_beta": own_beta,
                    **measured(matrix, reference, beta, policy),
                    "over_dpo": wins(matrix, policy, rest.log_probs),
                    "over_equal": wins(matrix, policy, equal.log_probs),
                    "over_offline": wins(matrix, policy, offline.log_probs),
                }


def drawn_reference(responses: int, seed: int) -> Floats:
    """(Y,) log-probabilities: without them the even mixture, where all begin, would be the cycle's equilibrium."""
    logits = np.random.default_rng((17, seed)).normal(size=responses)
    return logits - np.log(np.exp(logits).sum())


def kl(log_p: Floats, log_q: Floats) -> float:
    return float(kl_divergence(torch.from_numpy(log_p), torch.from_numpy(log_q)))


def wins(matrix: Floats, first: Floats, second: Floats) -> float:
    """By how much the first policy's win rate over the second exceeds 1/2."""
    return float(np.exp(first) @ (matrix - 0.5) @ np.exp(second))


def measured(matrix: Floats, reference: Floats, beta: float, policy: Floats) -> Row:
    payoff = matrix @ np.exp(policy)
    u, log_policy, log_reference = (torch.from_numpy(value) for value in (payoff, policy, reference))
    return {
        "gap": float(duality_gap(u, log_policy, log_reference, beta)),
        "exploited": float(payoff.max() - 0.5),
        "kl": kl(policy, reference),
    }


# Runs at equal budgets


def runs(plan: Plan, beta: float, out: Path, comparisons: int | None = None) -> Iterator[Row]:
    part = "exact" if comparisons is None else "sampled"
    reference = drawn_reference(plan.responses, 0)
    file = out / "reference.txt"
    write_text(file, "".join(f"{float(p)!r}\n" for p in np.exp(reference)))
    games = [
        {
            "name": "bradley_terry+cyclic",
            "label": f"{weight:g}",
            "options": {"responses": plan.responses, "weight": float(weight)},
            "beta": beta,
            "comparisons": comparisons,
            "reference": str(file),
        }
        for weight in plan.run_weights
    ]
    done = nz.compare(
        games,
        contestants(beta, plan.steps),
        queries=plan.payoffs * (1 if comparisons is None else comparisons * plan.responses),
        seeds=plan.run_seeds,
        tuning_seeds=1,
        draws=0,
        report=False,
        out=out / f"{part}-{beta:g}",
    )
    for (label, seed), policies in final_policies(done).items():
        oracle = bradley_terry_cyclic(seed=seed, responses=plan.responses, weight=float(label))
        matrix = oracle.matrix().numpy()
        for solver, policy in policies.items():
            yield {
                "part": part,
                "beta": beta,
                "weight": float(label),
                "seed": seed,
                "solver": solver,
                "dpo_beta": "",
                **measured(matrix, reference, beta, policy),
                "over_dpo": wins(matrix, policy, policies[DPO]),
                "over_equal": "",
                "over_offline": "",
            }


def contestants(beta: float, steps: Sequence[float]) -> list[dict[str, Any]]:
    """The same steps for everyone, written as each solver writes its own. (On a table egpo is nash_mp.)"""
    explicit = [step / (1 + step * beta) for step in steps]
    return [
        {"name": "nash_mp", "options": {"eta": [beta * step for step in steps]}},
        *({"name": name, "options": {"eta": explicit}} for name in ("nash_md", "online_ipo")),
        {"name": "optimistic_md", "options": {"eta": list(steps)}},
        {"name": DPO, "options": {"eta": list(steps)}},
    ]


def final_policies(done: Any) -> dict[tuple[str, int], dict[str, Floats]]:
    """(game, seed) -> solver -> log-probabilities of the last policy."""
    found: dict[tuple[str, int], dict[str, Floats]] = {}
    table = done.results().select(["game", "name", "seed", "role", "cell"]).to_pylist()
    for game, name, seed, role, cell in sorted({tuple(row.values()) for row in table}):
        if role == "run":
            probabilities = np.array(done.policy(cell)["probabilities"])
            with np.errstate(divide="ignore"):
                found.setdefault((game, seed), {})[name] = np.log(probabilities)
    return found


# What came of it


def verdict(rows: list[Row]) -> dict[str, Any]:
    return {
        "targets": {f"beta {beta:g}": _targets(part) for beta, part in grouped(rows, "beta", part="target")},
        **{
            kind: {f"beta {beta:g}": _runs(part) for beta, part in grouped(rows, "beta", part=kind)}
            for kind in ("exact", "sampled")
        },
    }


def grouped(rows: Sequence[Row], by: str, **fixed: Any) -> list[tuple[Any, list[Row]]]:
    chosen = [row for row in rows if all(row[name] == value for name, value in fixed.items())]
    return [(key, [row for row in chosen if row[by] == key]) for key in dict.fromkeys(row[by] for row in chosen)]


def column(rows: Sequence[Row], name: str, **fixed: Any) -> list[float]:
    return [row[name] for row in rows if all(row[key] == value for key, value in fixed.items())]


def _targets(rows: list[Row]) -> dict[str, Any]:
    weights = {}
    for weight, part in grouped(rows, "weight"):
        by = dict(grouped(part, "solver"))
        weights[f"{weight:g}"] = {
            **{name: mean_interval(column(by[NASH], over)) for name, over in WINS.items()},
            **{f"exploited more: {solver}": difference(by[solver], by[NASH], "exploited") for solver in RIVALS},
            **{f"duality gap: {solver}": mean_interval(column(by[solver], "gap")) for solver in RIVALS},
            **{f"KL: {solver}": mean_interval(column(by[solver], "kl")) for solver in (NASH, *RIVALS)},
            "beta at equal KL over beta": mean_interval([row["dpo_beta"] / row["beta"] for row in by[EQUAL]]),
        }
    verdicts = {f"{name}, from weight": first_from(weights, name) for name in WINS}
    exploited = [f"exploited more: {solver}" for solver in RIVALS]
    verdicts |= {f"{name}, from weight": first_from(weights, name) for name in exploited}
    return {**verdicts, "weights": told(weights)}


def told(weights: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Means with their intervals, in words."""
    return {
        weight: {name: f"{one['mean']:g} [{one['low']:g}, {one['high']:g}]" for name, one in found.items()}
        for weight, found in weights.items()
    }


def difference(first: Sequence[Row], second: Sequence[Row], name: str) -> dict[str, float | None]:
    """The mean of first - second over the same seeds."""
    pairs = zip(column(first, name), column(second, name), strict=True)
    return mean_interval([a - b for a, b in pairs])


def first_from(weights: dict[str, Any], name: str) -> float | None:
    """The smallest weight from which on, up to the largest, the interval lies above 0; none where it never does."""
    found = None
    for weight in reversed(weights):
        if not weights[weight][name]["low"] > 1e-10:  # the rounding of fixed points, and of what is equal
            break
        found = float(weight)
    return found


def _runs(rows: list[Row]) -> dict[str, Any]:
    rival = {(row["weight"], row["seed"]): row for row in rows if row["solver"] == DPO}
    found: dict[str, Any] = {}
    for solver, part in grouped(rows, "solver"):
        if solver == DPO:
            continue
        weights: dict[str, Any] = {}
        for weight, mine in grouped(part, "weight"):
            against = [rival[weight, row["seed"]] for row in mine]
            weights[f"{weight:g}"] = {
                "decades of gap below DPO": decades(mine, against),
                "wins over DPO": mean_interval(column(mine, "over_dpo")),
                "exploited more: DPO": difference(against, mine, "exploited"),
            }
        names = [*next(iter(weights.values()))]
        found[solver] = {f"{name}, from weight": first_from(weights, name) for name in names} | {
            "weights": told(weights)
        }
    return found


def decades(mine: Sequence[Row], against: Sequence[Row]) -> dict[str, float | None]:
    """log10 of the rival's gap over this one's, seed by seed; gaps below 1e-14 are rounding."""
    pairs = zip(column(mine, "gap"), column(against, "gap"), strict=True)
    return mean_interval([float(np.log10(max(b, 1e-14) / max(a, 1e-14))) for a, b in pairs])


COLOURS = {
    "nash_mp": "#0067a6",
    "nash_md": "#b98300",
    "online_ipo": "#00805e",
    "optimistic_md": "#5d50c6",
    DPO: "#c2410c",
}
TARGET_COLOURS = ("#0067a6", "#c2410c", "#00805e", "#a8508a")
STYLES = {NASH: "-", DPO: ":", EQUAL: "--", OFFLINE: "-."}


def band(axes: Any, rows: Sequence[Row], name: str, **drawn: Any) -> None:
    """Mean over seeds and its interval against the weight."""
    found = [(weight, mean_interval(column(part, name))) for weight, part in grouped(rows, "weight")]
    weights = [weight for weight, _ in found]
    axes.plot(weights, [one["mean"] for _, one in found], **drawn)
    low, high = ([one[end] for _, one in found] for end in ("low", "high"))
    axes.fill_between(weights, low, high, color=drawn["color"], alpha=0.15, linewidth=0)


def draw_targets(rows: list[Row], path: Path) -> None:
    betas = grouped(rows, "beta", part="target")
    shades = dict(zip([beta for beta, _ in betas], ("#0067a6", "#00805e", "#b98300"), strict=False))
    with figure(9.6, 5.0) as drawn:
        axes = drawn.subplots(2, 3)
        for beta, part in betas:
            by = dict(grouped(part, "solver"))
            for axis, over in zip(axes[0], WINS.values(), strict=True):
                band(axis, by[NASH], over, color=shades[beta], label=f"β = {beta:g}")
        for axis, name in zip(axes[0], WINS, strict=True):
            axis.axhline(0, color="black", linewidth=0.7)
            axis.set(title=name.removeprefix("wins "))
        axes[0][0].set_ylabel("equilibrium's win rate beyond 1/2")
        axes[0][0].legend()
        for axis, (beta, part) in zip(axes[1], betas, strict=False):
            for (solver, mine), colour in zip(grouped(part, "solver"), TARGET_COLOURS, strict=True):
                band(axis, mine, "exploited", color=colour, linestyle=STYLES[solver], label=solver)
            axis.set(title=f"exploited, β = {beta:g}", xlabel="weight of the cycle")
        axes[1][0].set_ylabel("best response's win rate beyond 1/2")
        axes[1][0].legend(fontsize=6)
        save(drawn, path)


def draw_runs(rows: list[Row], path: Path) -> None:
    panels = [(kind, beta, part) for kind in ("exact", "sampled") for beta, part in grouped(rows, "beta", part=kind)]
    with figure(2.6 * len(panels), 4.6) as drawn:
        axes = drawn.subplots(2, len(panels), squeeze=False)
        for at, (kind, beta, part) in enumerate(panels):
            for solver, mine in grouped(part, "solver"):
                look = {"color": COLOURS[solver], "linestyle": STYLES.get(solver, "-"), "label": solver}
                logs = [{**row, "gap": np.log10(max(row["gap"], 1e-14))} for row in mine]
                band(axes[0][at], logs, "gap", **look)
                if solver != DPO:
                    band(axes[1][at], mine, "over_dpo", **look)
            axes[0][at].set(title=f"{kind} payoffs, β = {beta:g}", ylabel="log10 duality gap" if at == 0 else "")
            axes[1][at].axhline(0, color="black", linewidth=0.7)
            axes[1][at].set(xlabel="weight of the cycle", ylabel="wins over Online DPO, beyond 1/2" if at == 0 else "")
        axes[0][0].legend(fontsize=6)
        save(drawn, path)
