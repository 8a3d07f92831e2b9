"""`nlhf-zoo solve`: one solver on one game of listed responses."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from nlhf_zoo.cli.policies import PolicyKind
from nlhf_zoo.cli.verb import UNSAVED, Answer, Verb
from nlhf_zoo.errors import BadInput

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from nlhf_zoo.drive import Result
    from nlhf_zoo.interfaces import EnumerableOracle, Game, Solver
    from nlhf_zoo.tabular.winner import WinnerReport

__all__ = ["VERB"]

DEFAULT_STEPS = 1000
_LEAST = {"steps": 0, "queries": 0, "tol": 0, "every": 1, "smoothing": 0, "winner_limit": 0}
SUPPORT = 1e-9  # what rounding leaves of a zero in a solved linear programme


@attrs.frozen(kw_only=True)
class SolveOptions:
    """What to solve, by what, for how long.

    Attributes:
        game: registered name of a game, or a file of preferences or win counts.
        game_options: the game's parameters, as `--game-set responses=50 rank=2`; `seed=3` there draws the game from
            another seed than --seed.
        solver: registered name of a solver.
        solver_options: its hyperparameters, as `--set eta=0.2`.
        beta: strength of the regularisation towards the reference, >= 0; most solvers need > 0.
        divergence: registered name of the regulariser D (see nlhf-zoo list).
        divergence_options: its parameters, as `--divergence alpha --divergence-set alpha=0.3`.
        steps: at most so many steps; 1000, where --queries is not given either.
        queries: no step is begun after so many queries.
        tol: stop when the duality gap is at most this.
        every: measure every so many steps.
        seed: of the game's draw and of sampled comparisons.
        reference: file of the reference policy, one probability a line, or label,probability; uniform unless given.
        policy: what is trained, from the reference on: a table (exact), a softmax table, log-linear features or a
            small MLP (gradient steps on exact expectations).
        policy_options: its options, as `--policy-set learning_rate=0.5 steps=5 optimizer=adam features=8`; Gaussian
            features by --seed, one a response where their number is left out.
        smoothing: s in P = (W + s) / (W + W^T + 2 s), for win counts W.
        kind: what the numbers in a file are, where it does not say so itself.
        comparisons: replace exact payoffs by so many sampled comparisons a response; exact unless given.
        winner_limit: the von Neumann winner is computed up to so many responses (about half a second at 1000, half
            a minute at 4000); 0 leaves it out.
        out: folder for result.json, history.csv and config.yaml; must be new or empty.
        overwrite: write into a folder that is not empty.
    """

    game: str
    game_options: Mapping[str, Any] = attrs.field(factory=dict)
    solver: str = "nash_mp"
    solver_options: Mapping[str, Any] = attrs.field(factory=dict)
    beta: float = 0.1
    divergence: str = "reverse_kl"
    divergence_options: Mapping[str, Any] = attrs.field(factory=dict)
    steps: int | None = None
    queries: int | None = None
    tol: float | None = None
    every: int = 1
    seed: int = 0
    reference: str | None = None
    policy: PolicyKind = "table"
    policy_options: Mapping[str, Any] = attrs.field(factory=dict)
    smoothing: float = 0.5
    kind: Literal["auto", "probabilities", "counts"] = "auto"
    comparisons: int | None = None
    winner_limit: int = 1000
    out: Path | None = attrs.field(default=None, metadata=UNSAVED)
    overwrite: bool = attrs.field(default=False, metadata=UNSAVED)

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise BadInput(f"--seed must be a whole number from 0 to 2**63 - 1, got {self.seed}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadInput(f"--{name.replace('_', '-')} must be >= {least}, got {value}")


def run(options: SolveOptions) -> Answer:
    """Solve, measure, and write the folder where one is asked for."""
    from nlhf_zoo.cli.answers import claim_folder
    from nlhf_zoo.cli.solvers import configured

    if options.out is not None:
        claim_folder(options.out, options.overwrite)
    solver = configured(options.solver, options.solver_options)
    oracle, wins = _oracle(options)
    result = _played(options, _parametrised(options, _game(options, oracle)), solver)
    document = _document(options, oracle, wins, result)
    if document["never_compared"] is not None and document["never_compared"]["warning"]:
        redraw = "nlhf-zoo compare redraws the counts and says how sure each of them is"
        print(f"nlhf-zoo: {document['never_compared']['warning']}; {redraw}", file=sys.stderr)
    if options.tol is not None and not result.converged:
        gap = document["duality_gap"]
        print(f"nlhf-zoo: not converged: duality gap {gap:.3g} > tol {options.tol:.3g}", file=sys.stderr)
    if options.out is not None:
        _write(options.out, options, document, result.history)
    return Answer(document, lambda console: _show(document, console))


def _oracle(options: SolveOptions) -> tuple[EnumerableOracle, Tensor | None]:
    """What is asked, and the win counts that it was made of, if it was."""
    from nlhf_zoo.games.named import named_game
    from nlhf_zoo.oracles import SampledOracle

    named = named_game(
        options.game, options.game_options, seed=options.seed, smoothing=options.smoothing, kind=options.kind
    )
    asked = named.oracle if options.comparisons is None else SampledOracle(named.oracle, options.comparisons)
    return asked, named.wins


def _game(options: SolveOptions, oracle: EnumerableOracle) -> Game:
    from nlhf_zoo.cli.divergences import configured_divergence
    from nlhf_zoo.data import read_reference
    from nlhf_zoo.interfaces import Game
    from nlhf_zoo.tabular import TabularPolicy

    divergence = configured_divergence(options.divergence, options.divergence_options)
    if options.reference is None:
        return Game(oracle, beta=options.beta, divergence=divergence, name=options.game)
    log_probs = read_reference(options.reference, oracle.labels, oracle.num_responses)
    return Game(oracle, TabularPolicy(log_probs), options.beta, divergence, name=options.game)


def _parametrised(options: SolveOptions, game: Game) -> Game:
    from nlhf_zoo.cli.policies import parametrised
    from nlhf_zoo.tabular import TabularPolicy

    assert isinstance(game.reference, TabularPolicy)
    # The run starts at the reference, as on a language model: one policy is both.
    reference = parametrised(options.policy, options.policy_options, game.reference, options.seed)
    return attrs.evolve(game, reference=reference)


def _played(options: SolveOptions, game: Game, solver: Solver) -> Result:
    from nlhf_zoo.cli.terminal import progress_bar
    from nlhf_zoo.drive import solve

    steps = DEFAULT_STEPS if options.steps is None and options.queries is None else options.steps
    with progress_bar(options.solver, steps or options.queries) as move:
        return solve(
            game,
            solver,
            steps=steps,
            queries=options.queries,
            tol=options.tol,
            seed=options.seed,
            every=options.every,
            progress=None if move is None else lambda state: move(state.step if steps else state.queries.total),
        )


def _document(options: SolveOptions, oracle: EnumerableOracle, wins: Tensor | None, result: Result) -> dict[str, Any]:
    from nlhf_zoo.plain import plain
    from nlhf_zoo.tabular import TabularPolicy

    assert isinstance(result.policy, TabularPolicy)
    probabilities = result.policy.probs.tolist()
    last = result.history[-1]
    winner = _found_winner(oracle, options.winner_limit)
    document = {
        "solver": options.solver,
        "hyperparameters": attrs.asdict(result.solver),  # type: ignore[arg-type]  # every solver is an attrs class
        "game": options.game,
        "beta": options.beta,
        "divergence": options.divergence,
        "divergence_parameters": dict(options.divergence_options),
        "seed": options.seed,
        "responses": oracle.num_responses,
        "steps": last["step"],
        "queries": last["queries"],
        "queries_sampled": last["queries_sampled"],
        "seconds": result.seconds,
        "tol": options.tol,
        "converged": result.converged,
        "duality_gap": last.get("duality_gap"),
        "kl_to_equilibrium": last.get("kl_to_equilibrium"),
        "span_to_equilibrium": last.get("span_to_equilibrium"),
        "condorcet_winner": _condorcet_winner(oracle),
        "von_neumann_winner": None if winner is None else _von_neumann_winner(oracle, winner),
        "never_compared": None if winner is None or wins is None else _never_compared(wins, winner),
        "policy_kind": options.policy,
        "policy": dict(zip(oracle.labels, probabilities, strict=True)) if oracle.labels else probabilities,
    }
    return plain(document)


def _condorcet_winner(oracle: EnumerableOracle) -> str | int | None:
    """The response that beats every other, by label or index."""
    try:
        matrix = oracle.matrix()
    except BadInput:  # an operator
        return None
    beats_all = (matrix > 0.5).sum(-1) == oracle.num_responses - 1
    return next((_name(oracle, i) for i, beats in enumerate(beats_all.tolist()) if beats), None)


def _found_winner(oracle: EnumerableOracle, limit: int) -> WinnerReport | None:
    from nlhf_zoo.tabular import find_winner

    if oracle.num_responses > limit:
        return None
    try:
        return find_winner(oracle)
    except BadInput:  # an operator
        return None


def _never_compared(wins: Tensor, winner: WinnerReport) -> dict[str, Any]:
    """Of the pairs of the winner's support, how many have no comparison; a warning where some have none."""
    from nlhf_zoo.data.coverage import unmet

    found = unmet(wins, winner.policy.probs > SUPPORT)
    return {**attrs.asdict(found), "warning": found.warning}


def _von_neumann_winner(oracle: EnumerableOracle, report: WinnerReport) -> dict[str, Any]:
    """Its support, by label or index, the likeliest first, and whether it is the only one."""
    support = [(p, _name(oracle, i)) for i, p in enumerate(report.policy.probs.tolist()) if p > SUPPORT]
    support.sort(key=lambda pair: -pair[0])
    return {
        "size": len(support),
        "support": [name for _, name in support],
        "probabilities": [p for p, _ in support],
        "unique": bool(report.unique),
        "choice": report.choices[0],
    }


def _name(oracle: EnumerableOracle, index: int) -> str | int:
    return oracle.labels[index] if oracle.labels else index


def _rooted(options: SolveOptions) -> SolveOptions:
    """The same with files named from the root, so that a saved config works from any folder."""
    from nlhf_zoo.games.named import is_registered

    def absolute(path: str) -> str:
        return str(Path(path).absolute())

    game = options.game if is_registered(options.game) else absolute(options.game)
    reference = None if options.reference is None else absolute(options.reference)
    return attrs.evolve(options, game=game, reference=reference)


def _write(out: Path, options: SolveOptions, document: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
    from nlhf_zoo.cli.answers import write_files
    from nlhf_zoo.cli.config_files import as_yaml
    from nlhf_zoo.cli.flags import saved

    rows = io.StringIO()
    writer = csv.DictWriter(rows, fieldnames=list(history[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    files = {
        "config.yaml": as_yaml(saved(_rooted(options))),
        "history.csv": rows.getvalue(),
        "result.json": json.dumps(document, indent=2, allow_nan=False) + "\n",
    }
    write_files(out, files)


def _show(document: Mapping[str, Any], console: Console) -> None:
    from nlhf_zoo.cli.terminal import number, printable

    regulariser = "" if document["divergence"] == "reverse_kl" else f" ({document['divergence']})"
    settings = ", ".join(f"{key} {value}" for key, value in document["hyperparameters"].items() if value is not None)
    console.print(
        f"{document['solver']}{f' ({settings})' if settings else ''} on {printable(document['game'])},"
        f" {document['responses']} responses, beta {document['beta']:g}{regulariser}"
    )
    unit = "sampled comparisons" if document["queries_sampled"] else "queries"
    console.print(f"{document['steps']} steps, {document['queries']} {unit}, {document['seconds']:.3g} s")
    reached = "" if document["tol"] is None else f"  (tol {document['tol']:g} {_reached(document)})"
    console.print(f"duality gap          {number(document['duality_gap'])}{reached}")
    console.print(f"KL to equilibrium    {number(document['kl_to_equilibrium'])}")
    console.print(f"span to equilibrium  {number(document['span_to_equilibrium'])}")
    _show_policy(document, console)
    _show_winners(document, console)


def _reached(document: Mapping[str, Any]) -> str:
    return "reached" if document["converged"] else "not reached"


def _show_policy(document: Mapping[str, Any], console: Console, most: int = 10) -> None:
    from nlhf_zoo.cli.terminal import cut, table

    policy = document["policy"]
    ranked = sorted(policy.items() if isinstance(policy, Mapping) else enumerate(policy), key=lambda item: -item[1])
    winner = document["von_neumann_winner"] or {"support": [], "probabilities": []}
    shares = dict(list(zip(winner["support"], winner["probabilities"], strict=True))[:most])
    rows = [
        (cut(str(name)), f"{p:.4f}", f"{shares[name]:.4f}" if name in shares else "")
        for place, (name, p) in enumerate(ranked)
        if place < most or name in shares
    ]
    columns = ("response", "policy", "von Neumann winner")
    console.print(table(None, columns, rows, right=columns[1:]))
    if len(ranked) > len(rows):
        console.print(f"and {len(ranked) - len(rows)} more\n")


def _show_winners(document: Mapping[str, Any], console: Console) -> None:
    from nlhf_zoo.cli.terminal import cut, printable

    winner = document["von_neumann_winner"]
    if winner is None:
        text = f"not computed; --winner-limit {document['responses']} or more does, for a game that has a matrix"
    else:
        shares = zip(winner["support"], winner["probabilities"], strict=True)
        text = ", ".join(f"{cut(str(name))} {p:.3f}" for name, p in list(shares)[:10])
        text += ", ..." if winner["size"] > 10 else ""
        text = f"{winner['size']} of {document['responses']} responses: {text}"
        text += "" if winner["unique"] else f" (not the only one: {winner['choice']})"
    console.print(f"von Neumann winner  {printable(text)}")
    condorcet = document["condorcet_winner"]
    console.print(f"Condorcet winner    {'none' if condorcet is None else printable(cut(str(condorcet)))}")


VERB = Verb(
    name="solve",
    summary="one solver on one game: how near the equilibrium, at what cost, and who wins",
    description="""\
--game takes the name of a registered game (see nlhf-zoo list) or a file: csv or json (also .gz), npz, npy, parquet.
A plain csv is a square of P(row beats column), with a header of labels or without; win counts are taken too. A
registered name goes before a file of the same name; write ./NAME for the file.""",
    example="""\
  nlhf-zoo solve --game low_rank --game-set responses=100 rank=2 --solver nash_mp --beta 0.01 --steps 500
  nlhf-zoo solve --game votes.csv.gz --beta 0.01 --steps 10000 --tol 1e-8 --out runs/votes
  nlhf-zoo solve --config runs/votes/config.yaml --solver online_ipo --json
  nlhf-zoo solve --game random --set kappa=0.1 eta=0.5 --policy mlp --policy-set hidden=8 learning_rate=0.5
""",
    options=SolveOptions,
    run=run,
    flags={
        "game_options": "--game-set",
        "solver_options": "--set",
        "divergence_options": "--divergence-set",
        "policy_options": "--policy-set",
    },
)
