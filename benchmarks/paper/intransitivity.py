"""From which share of intransitivity on does a Nash solver beat Online DPO, and by how much?

P = (1 - weight) x Bradley-Terry + weight x cycle; everything else stays as it is. Two parts. "target" compares what
the two are made for, free of steps and budgets: the equilibrium, and the policy where Online DPO comes to rest
(`dpo_target`), at the same beta and at equal KL from the reference (DPO's own beta is then chosen for that). "exact"
and "sampled" are runs by `nz.compare` at equal budgets of queries, hyperparameters tuned on seeds of their own.

Columns of results.csv: part, beta, weight, seed, solver; gap, the regularised duality gap; exploited, what the best
response of all wins over it beyond 1/2; kl to the reference; over_dpo, its plain win rate over Online DPO at the same
beta; over_equal, the same over Online DPO at equal KL ("target" only).
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
from benchmarks.paper.bootstrap import mean_interval
from benchmarks.paper.dpo_target import at_distance, rest_at
from benchmarks.paper.figures import figure, save
from benchmarks.paper.results import Row, write_rows, write_verdict
from nlhf_zoo.atomic import write_text
from nlhf_zoo.games import bradley_terry_cyclic
from nlhf_zoo.metrics import duality_gap, kl_divergence

Floats = NDArray[np.float64]

DPO = "online_dpo"
EXACT_STEPS = (0.1, 0.5, 2.0, 8.0, 32.0)
"""Every solver's grid, as a step in units of 1 / payoff; five points each."""
COMPARISONS = 4


@attrs.frozen
class Plan:
    """The size of the study."""

    responses: int
    weights: Sequence[float]
    run_weights: Sequence[float]
    betas: Sequence[float]
    run_betas: Sequence[float]
    seeds: int
    run_seeds: int
    payoffs: int


FULL = Plan(
    responses=50,
    weights=(0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
    run_weights=(0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1),
    betas=(0.1, 0.03, 0.01),
    run_betas=(0.1, 0.01),
    seeds=16,
    run_seeds=8,
    payoffs=1000,
)
QUICK = Plan(
    responses=8,
    weights=(0, 0.5, 1),
    run_weights=(0, 0.5),
    betas=(0.1, 0.03),
    run_betas=(0.1,),
    seeds=2,
    run_seeds=2,
    payoffs=30,
)


def run(out: Path, quick: bool) -> None:
    plan = QUICK if quick else FULL
    rows = [*targets(plan)]
    for beta in plan.run_betas:
        rows += [*runs(plan, beta, out)]
        rows += [*runs(plan, beta, out, COMPARISONS)]
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
            equal = at_distance(matrix, reference, kl(best, reference))
            found = {"equilibrium": best, DPO: rest.log_probs, f"{DPO} at equal KL": equal.log_probs}
            for solver, policy in found.items():
                yield {
                    "part": "target",
                    "beta": beta,
                    "weight": float(weight),
                    "seed": seed,
                    "solver": solver,
                    **measured(matrix, reference, beta, policy),
                    "over_dpo": wins(matrix, policy, rest.log_probs),
                    "over_equal": wins(matrix, policy, equal.log_probs),
                }


def drawn_reference(responses: int, seed: int) -> Floats:
    """(Y,) log-probabilities: without them the even mixture, where all begin, would be the cycle's equilibrium."""
    logits = np.random.default_rng((17, seed)).normal(size=responses)
    return logits - np.log(np.exp(logits).sum())


def kl(log_p: Floats, log_q: Floats) -> float:
    return float(kl_divergence(torch.from_numpy(log_p), torch.from_numpy(log_q)))


def wins(matrix: Floats, first: Floats, second: Floats) -> float:
    return float(np.exp(first) @ matrix @ np.exp(second))


def measured(matrix: Floats, reference: Floats, beta: float, policy: Floats) -> Row:
    payoff = matrix @ np.exp(policy)
    tensors = [torch.from_numpy(value) for value in (payoff, policy, reference)]
    return {
        "gap": float(duality_gap(*tensors, beta)),
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
        contestants(beta),
        queries=plan.payoffs * (1 if comparisons is None else comparisons * plan.responses),
        seeds=plan.run_seeds,
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
                **measured(matrix, reference, beta, policy),
                "over_dpo": wins(matrix, policy, policies[DPO]),
                "over_equal": "",
            }


def contestants(beta: float) -> list[dict[str, Any]]:
    """The same five steps for everyone, written as each solver writes its own."""
    explicit = [step / (1 + step * beta) for step in EXACT_STEPS]
    return [
        {"name": "nash_mp", "options": {"eta": [beta * step for step in EXACT_STEPS]}},
        *({"name": name, "options": {"eta": explicit}} for name in ("egpo", "nash_md", "online_ipo")),
        {"name": "optimistic_md", "options": {"eta": list(EXACT_STEPS)}},
        {"name": DPO, "options": {"eta": list(EXACT_STEPS)}},
    ]


def final_policies(done: Any) -> dict[tuple[str, int], dict[str, Floats]]:
    """(game, seed) -> solver -> log-probabilities of the last policy."""
    found: dict[tuple[str, int], dict[str, Floats]] = {}
    table = done.results().select(["game", "name", "seed", "role", "cell"]).to_pylist()
    for game, name, seed, role, cell in sorted({tuple(row.values()) for row in table}):
        if role == "run":
            probabilities = np.load(done.folder / "policies" / f"{cell}.npz")["probabilities"]
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
    weights, by = {}, grouped(rows, "weight")
    for weight, part in by:
        mine = [row for row in part if row["solver"] == "equilibrium"]
        rest = [row for row in part if row["solver"] == DPO]
        equal = [row for row in part if row["solver"] not in ("equilibrium", DPO)]
        weights[f"{weight:g}"] = {
            "win rate over DPO": mean_interval(column(mine, "over_dpo")).plain(),
            "win rate over DPO at equal KL": mean_interval(column(mine, "over_equal")).plain(),
            "DPO's duality gap": mean_interval(column(rest, "gap")).plain(),
            "exploited more by DPO": difference(rest, mine, "exploited"),
            "exploited more by DPO at equal KL": difference(equal, mine, "exploited"),
            "KL": {
                solver: mean_interval(column(part, "kl", solver=solver)).plain()
                for solver in dict.fromkeys(row["solver"] for row in part)
            },
        }
    return {
        "beats DPO in win rate from weight": first_from(weights, "win rate over DPO", 0.5),
        "beats DPO at equal KL from weight": first_from(weights, "win rate over DPO at equal KL", 0.5),
        "is exploited less from weight": first_from(weights, "exploited more by DPO", 0.0),
        "is exploited less at equal KL from weight": first_from(weights, "exploited more by DPO at equal KL", 0.0),
        "weights": weights,
    }


def difference(first: Sequence[Row], second: Sequence[Row], name: str) -> dict[str, float]:
    """The mean of first - second over the same seeds."""
    pairs = zip(column(first, name), column(second, name), strict=True)
    return mean_interval([a - b for a, b in pairs]).plain()


def first_from(weights: dict[str, Any], name: str, above: float) -> float | None:
    """The smallest weight from which on, up to the largest, the interval lies above; none where it never does."""
    found = None
    for weight in reversed(weights):
        if not weights[weight][name]["low"] > above + 1e-9:
            break
        found = float(weight)
    return found


def _runs(rows: list[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for solver, part in grouped(rows, "solver"):
        if solver == DPO:
            continue
        weights = {
            f"{weight:g}": {
                "win rate over DPO": mean_interval(column(mine, "over_dpo")).plain(),
                "decades of gap below DPO": decades(mine, [row for row in rows if row["solver"] == DPO]),
                "exploited more by DPO": difference(
                    [row for row in rows if row["solver"] == DPO and row["weight"] == weight], mine, "exploited"
                ),
            }
            for weight, mine in grouped(part, "weight")
        }
        found[solver] = {
            "ends at a lower gap from weight": first_from(weights, "decades of gap below DPO", 0.0),
            "beats DPO in win rate from weight": first_from(weights, "win rate over DPO", 0.5),
            "is exploited less from weight": first_from(weights, "exploited more by DPO", 0.0),
            "weights": weights,
        }
    return found


def decades(mine: Sequence[Row], rival: Sequence[Row]) -> dict[str, float]:
    """log10 of the rival's gap over this one's, seed by seed; gaps below 1e-14 are rounding."""
    other = {(row["weight"], row["seed"]): row["gap"] for row in rival}
    logs = [np.log10(max(other[row["weight"], row["seed"]], 1e-14) / max(row["gap"], 1e-14)) for row in mine]
    return mean_interval(logs).plain()


COLOURS = {
    "nash_mp": "#0067a6",
    "egpo": "#58b2f2",
    "nash_md": "#b98300",
    "online_ipo": "#00805e",
    "optimistic_md": "#5d50c6",
    DPO: "#c2410c",
    "equilibrium": "#0067a6",
    f"{DPO} at equal KL": "#a8508a",
}
MARKS = {"egpo": "--", f"{DPO} at equal KL": "--"}


def band(axes: Any, rows: Sequence[Row], name: str, floor: float | None = None, **drawn: Any) -> None:
    """Mean over seeds and its interval against the weight."""
    weights = sorted({row["weight"] for row in rows})
    found = [mean_interval(column(rows, name, weight=weight)) for weight in weights]
    least = -np.inf if floor is None else floor
    axes.plot(weights, [max(one.mean, least) for one in found], **drawn)
    low, high = ([max(value, least) for value in side] for side in zip(*((o.low, o.high) for o in found), strict=True))
    axes.fill_between(weights, low, high, color=drawn["color"], alpha=0.15, linewidth=0)


def draw_targets(rows: list[Row], path: Path) -> None:
    betas = grouped(rows, "beta", part="target")
    shades = dict(zip([beta for beta, _ in betas], ("#0067a6", "#00805e", "#b98300"), strict=False))
    with figure(9.6, 3.0) as drawn:
        axes = drawn.subplots(1, 3)
        for beta, part in betas:
            mine = [row for row in part if row["solver"] == "equilibrium"]
            label = f"β = {beta:g}"
            band(axes[0], mine, "over_dpo", color=shades[beta], label=label)
            band(axes[1], mine, "over_equal", color=shades[beta], label=label)
            for solver, style in (("equilibrium", "-"), (DPO, ":"), (f"{DPO} at equal KL", "--")):
                chosen = [row for row in part if row["solver"] == solver]
                named = solver if beta == betas[0][0] else None
                band(axes[2], chosen, "exploited", color=shades[beta], linestyle=style, label=named)
        for axis in axes[:2]:
            axis.axhline(0.5, color="black", linewidth=0.7)
        axes[0].set(title="P(equilibrium ≻ Online DPO), same β", xlabel="weight of the cycle")
        axes[1].set(title="the same at equal KL from the reference", xlabel="weight of the cycle")
        axes[2].set(title="what the best response wins beyond 1/2", xlabel="weight of the cycle")
        axes[0].legend()
        axes[2].legend()
        save(drawn, path)


def draw_runs(rows: list[Row], path: Path) -> None:
    panels = [(kind, beta, part) for kind in ("exact", "sampled") for beta, part in grouped(rows, "beta", part=kind)]
    with figure(2.6 * len(panels), 4.6) as drawn:
        axes = drawn.subplots(2, len(panels), squeeze=False)
        for at, (kind, beta, part) in enumerate(panels):
            for solver, mine in grouped(part, "solver"):
                look = {"color": COLOURS[solver], "linestyle": MARKS.get(solver, "-"), "label": solver}
                logs = [{**row, "gap": np.log10(max(row["gap"], 1e-14))} for row in mine]
                band(axes[0][at], logs, "gap", **look)
                if solver != DPO:
                    band(axes[1][at], mine, "over_dpo", **look)
            axes[0][at].set(title=f"{kind} payoffs, β = {beta:g}", ylabel="log10 duality gap" if at == 0 else "")
            axes[1][at].axhline(0.5, color="black", linewidth=0.7)
            axes[1][at].set(xlabel="weight of the cycle", ylabel="win rate over Online DPO" if at == 0 else "")
        axes[0][0].legend(fontsize=6)
        save(drawn, path)
