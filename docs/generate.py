"""Writes what the code says of itself: docs/solvers/*.md, docs/reference/cli.md, and tables of docs/choose.md.

python docs/generate.py            write what is out of date
python docs/generate.py --check    exit 1 if anything is, and write nothing
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import re
import statistics
import sys
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

import nlhf_zoo as nz
from nlhf_zoo.cli.flags import described, flag_of, placeholder
from nlhf_zoo.cli.main import VERBS
from nlhf_zoo.cli.verb import Verb
from nlhf_zoo.registry import load, lookup
from nlhf_zoo.training.networks import models_held

DOCS = Path(__file__).parent
BETA = 1e-4
"""Of `nlhf-zoo train`, and of the values for language models on the pages."""
BETAS = (1.0, 0.1, 0.01)
"""Of the dry runs on a table."""
STEPS = 5
DRY_STEPS = 60
"""Of the dry runs on empty networks: more than the 50 after which mpo and comal move their reference."""
INNER = 16
"""Batches an update, where the pages say "several"."""

_MEASURED = {
    "kl": "KL(target ‖ π)",
    "span": "span of log π − log target",
    "duality_gap": "duality gap",
    "unregularised_gap": "duality gap at β = 0",
}


def small_game(beta: float) -> nz.Game:
    """Ten responses, every pair random: where costs are counted."""
    return nz.Game(lookup("games", "random")(seed=0, responses=10), beta=beta)


def first_party() -> dict[str, type[nz.Solver]]:
    """The solvers of this repository, by name."""
    return {name: entry.factory for name, entry in load().solvers.items() if entry.distribution == "nlhf-zoo"}


# --- what is measured


@attrs.frozen
class Costs:
    """What one form of a solver costs.

    Attributes:
        queries: of each step that was run on a table; of an implicit solver the median step of each run.
        implicit: whether a step has a fixed point to find.
        models: held on a language model with one batch an update, and with several.
    """

    queries: tuple[int, ...]
    implicit: bool
    models: tuple[int, int]

    def queries_in_words(self) -> str:
        low, high = min(self.queries), max(self.queries)
        if not self.implicit:
            return str(low) if low == high else f"{low} to {high}"
        # A fixed point is found to rounding error, which is another one on another machine: one digit is enough.
        least, most = (float(f"{count:.1g}") for count in (low, high))
        return f"about {least:g}" if least == most else f"about {least:g} to {most:g}"

    def models_in_words(self) -> str:
        one, several = self.models
        return str(one) if one == several else f"{one} or {several}"


def costs(solver: nz.Solver, betas: Iterable[float]) -> Costs:
    """By dry runs: a few steps on a small table, and on networks with nothing in them."""
    game = small_game(0.1)
    nowhere = nz.TabularPolicy(torch.zeros(10))  # a distance is not wanted, and an equilibrium need not be found
    implicit = isinstance(first_update(solver).opponent, nz.Itself)
    counts: list[int] = []
    for beta in betas:
        played = small_game(beta)
        start = None if "table" in solver.backends else nz.SoftmaxPolicy(nowhere.log_probs.double())
        run = nz.solve(played, solver, steps=STEPS, target=nowhere, policy=start)
        queries = [row["queries"] for row in run.history]
        spent = [after - before for before, after in itertools.pairwise(queries)]
        counts += [statistics.median_low(spent)] if implicit else spent
    one, several = (models_held(solver, game, inner, DRY_STEPS) for inner in (1, INNER))
    return Costs(tuple(counts), implicit, (one, several))


def first_update(solver: nz.Solver) -> nz.Update:
    game = small_game(0.1)
    return solver.propose(game, solver.init(game, game.reference))


def default_and_practical(cls: type[nz.Solver]) -> tuple[Costs, Costs]:
    # Counts depend on the form, not on beta, so that the practical one too can be played at a beta that is quick.
    return costs(cls(), BETAS), costs(cls(**cls.practical(0.1)), (0.1,))


# --- how it is written


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"`{value}`" if value is None or isinstance(value, str) else str(value)


def link(paper: str) -> str:
    """The paper, with its address where an arXiv number says it."""
    return re.sub(r"arXiv (\d{4}\.\d{5}(?:v\d)?)", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


def hyperparameters(cls: type[nz.Solver]) -> str:
    meanings, practical, default = described(cls), cls.practical(BETA), cls()
    names = [field.name for field in attrs.fields(cls)]  # type: ignore[arg-type]  # solvers are attrs classes
    return table(
        ("name", "default", f"language models, β = {BETA:g}", "meaning"),
        [
            (f"`{n}`", number(getattr(default, n)), number(practical.get(n, getattr(default, n))), meanings[n])
            for n in names
        ],
    )


def claim(guarantee: nz.Guarantee) -> str:
    """What is bounded, of which iterate, counted in what."""
    iterate = {"last": "last iterate", "average": "average iterate"}[guarantee.iterate]
    start = "" if guarantee.start == "any" else ", started at the reference"
    likely = f", with probability {1 - guarantee.delta:g}"
    certainty = {"sure": "", "expectation": ", in expectation", "probability": likely}
    every = f"{guarantee.every} steps" if guarantee.every > 1 else guarantee.per
    said = {
        "reached": ", in the limit, no rate",
        "kept": ", a fixed point, whether reached or not",
        "open": f", each {every}",
    }
    per = f", per {every}" if guarantee.bound else said[guarantee.limit]
    return f"{_MEASURED[guarantee.metric]}, {iterate}{per}{start}{certainty[guarantee.certainty]}"


def after_hundred(guarantee: nz.Guarantee) -> str:
    """The bound after 100 steps or queries on the small game, from the reference."""
    game = small_game(0.1)
    if guarantee.bound is None or not guarantee.holds(game):
        return "-"
    value = float(guarantee.bound(100, game))
    if value:
        return f"{value:.2g}"
    # It starts at its target: what is left to say is how fast it would come back.
    return f"{float(guarantee.bound(100, game, torch.ones((), dtype=torch.float64))):.2g} of the first"


def guarantees(cls: type[nz.Solver]) -> str:
    found = cls().guarantees
    if not found:
        return f"None is declared: {cls().no_guarantee}."
    rows = [(claim(g), g.assumptions, after_hundred(g), link(g.source)) for g in found]
    practical = cls(**cls.practical(BETA)).guarantees
    held = [g for g in practical if g.holds(small_game(BETA))]
    if held:
        there = "their conditions on the hyperparameters hold,\nbut sampled gradient steps are not exact"
    else:
        there = "their conditions do not hold" if practical else "none is declared"
    header = ("claim", "assumptions", "bound after 100, β = 0.1", "source")
    return (
        f"At the default hyperparameters, on a table; tested against every iterate by `nlhf-zoo check {cls.name}`.\n"
        "How tight they are: [guarantees.md](../guarantees.md).\n\n"
        + table(header, rows)
        + "\n\nThe bound is on a random game of 10 responses from the uniform policy, after 100 steps or queries.\n"
        f"At the values for language models, β = {BETA:g}: {there}."
    )


def approach(solver: nz.Solver) -> str:
    """How a language model goes towards the answer of an update."""
    update = first_update(solver)
    if update.loss is not None:
        how = f"the pairwise loss `{type(update.loss).__name__}`: {_first_line(update.loss)}"
    elif update.fit is not None:
        how = f"the loss `{type(update.fit).__name__}`: {_first_line(update.fit)}"
    else:
        how = "policy gradient of the update's objective."
    if isinstance(update.opponent, nz.Itself):
        against = "the learning policy itself, as it is at that moment"
    elif update.opponent is None:
        against = "nobody: the judge is not asked"
    else:
        against = "policies that stay as they are during the update"
    often = (
        "`--inner-steps` batches, each one gradient step" if update.steps is None else "one batch, one gradient step"
    )
    assert update.steps in (None, 1)
    return f"- loss: {how}\n- opponent: {against}.\n- an update takes: {often}."


def _first_line(thing: object) -> str:
    return (inspect.getdoc(type(thing)) or "").partition("\n")[0]


def cost_table(default: Costs, practical: Costs) -> str:
    rows: list[Sequence[str]] = [
        ("queries a step, on a table", default.queries_in_words(), practical.queries_in_words())
    ]
    for i, batches in enumerate(("one batch", "several batches")):
        held = [str(form.models[i]) for form in (default, practical)]
        rows.append((f"models held on a language model, {batches} an update", *held))
    varies = (
        " Models" if not default.implicit else " A step is a fixed point:\nits queries vary with game and β. Models"
    )
    return (
        table(("", "default", "for language models"), rows)
        + f"\n\nCounted in dry runs: {STEPS} steps on a random game of 10 responses with exact payoffs, each a query, "
        f"at β = {', '.join(f'{b:g}' for b in BETAS)}\n(for language models: their form, at β = 0.1).{varies} "
        "include the one that trains and the reference."
    )


def page(cls: type[nz.Solver], default: Costs, practical: Costs) -> str:
    module = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    about = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:")[0].strip()
    practical_solver = cls(**cls.practical(0.1))
    backends = "tables and language models" if not cls.only else f"{' and '.join(cls.backends)} only: {cls.only}"
    sections = {
        "When to use it": textwrap.fill(cls.when, 120),
        "The update": f"```text\n{module}\n```",
        "Hyperparameters": hyperparameters(cls),
        "Guarantees": guarantees(cls),
        "Cost": cost_table(default, practical),
        "On a language model": approach(practical_solver),
    }
    summary = cls.summary[0].upper() + cls.summary[1:]
    head = f"# `{cls.name}`\n\n{summary}.\n\n{about}\n\nSource: {link(cls.paper)}. Runs on: {backends}."
    return "\n\n".join([head, *(f"## {title}\n\n{text}" for title, text in sections.items())]) + "\n"


def index(solvers: Mapping[str, type[nz.Solver]], found: Mapping[str, tuple[Costs, Costs]]) -> str:
    rows = []
    for name, cls in solvers.items():
        default, practical = found[name]
        proved = "; ".join(dict.fromkeys(_goal(g) for g in cls().guarantees)) or "nothing"
        models = practical.models_in_words()
        rows.append(
            (f"[`{name}`]({name}.md)", cls.summary, proved, default.queries_in_words(), models, link(cls.paper))
        )
    header = ("solver", "what it is", "what is bounded", "queries a step", "models held", "source")
    return (
        "# The solvers\n\nWhich one to take: [choose.md](../choose.md). Written by `python docs/generate.py`.\n\n"
        + table(header, rows)
        + "\n\nBounds and queries are those of the default hyperparameters on a table, models those of the form for\n"
        "language models, with one batch an update or with several.\n"
    )


def memory(solvers: Mapping[str, type[nz.Solver]], found: Mapping[str, tuple[Costs, Costs]]) -> str:
    """Solvers by how many models their form for language models holds."""
    rows = []
    for count in sorted({models for _, practical in found.values() for models in practical.models}):
        names = [[n for n in solvers if found[n][1].models[i] == count] for i in (0, 1)]
        rows.append((str(count), *(", ".join(f"`{n}`" for n in column) or "-" for column in names)))
    return table(("models held", "one batch an update (the default)", "several batches an update"), rows)


def proved(solvers: Mapping[str, type[nz.Solver]]) -> str:
    """Solvers by what is proved of them."""
    groups: dict[str, list[str]] = {}
    for name, cls in solvers.items():
        for what in dict.fromkeys(_goal(g) for g in cls().guarantees) or ["nothing"]:
            groups.setdefault(what, []).append(f"`{name}`")
    nothing = groups.pop("nothing", [])
    rows = [(what, ", ".join(names)) for what, names in sorted(groups.items())]
    return table(
        ("what is bounded", "solvers, at their default hyperparameters"), [*rows, ("nothing", ", ".join(nothing))]
    )


def _goal(guarantee: nz.Guarantee) -> str:
    if guarantee.target is not None:
        rate = "" if guarantee.bound or guarantee.limit == "reached" else ", fixed point only"
        return f"{guarantee.iterate} iterate, to a target that is no equilibrium{rate}"
    if guarantee.about is not None:
        if guarantee.limit == "open":
            return f"{guarantee.iterate} iterate, to the equilibrium with a moving reference"
        game = small_game(0.1)
        if guarantee.about(game, nz.State({"current": game.reference})).beta == 0:
            return f"{guarantee.iterate} iterate, to an equilibrium at β = 0"
        rate = "" if guarantee.bound else ", no rate"
        return f"{guarantee.iterate} iterate, to the equilibrium under another divergence{rate}"
    goal = "an equilibrium at β = 0" if guarantee.metric == "unregularised_gap" else "the regularised equilibrium"
    return f"{guarantee.iterate} iterate, to {goal}" + ("" if guarantee.bound else ", no rate")


def with_block(text: str, name: str, block: str) -> str:
    """The text with what stands between the two marks of a block replaced."""
    marks = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
    if any(text.count(mark) != 1 for mark in marks):
        raise SystemExit(f"choose.md needs exactly one {marks[0]} and one {marks[1]}")
    before, rest = text.split(marks[0])
    return f"{before}{marks[0]}\n\n{block}\n\n{marks[1]}{rest.split(marks[1])[1]}"


def command_line() -> str:
    """The page of the verbs: what `--help` says of each, as tables."""
    verbs = [importlib.import_module(f"nlhf_zoo.cli.{name}").VERB for name in VERBS]
    head = (
        "# Command line\n\nWritten by `python docs/generate.py`, from what `nlhf-zoo VERB --help` says.\n\n"
        + table(("verb", "what it does"), [(f"[`{v.name}`](#{v.name})", v.summary) for v in verbs])
        + "\n\nEvery verb takes `--json`: one JSON document on stdout, everything else on stderr. Exit codes: 0 done,\n"
        "1 a check failed or a computation did not converge, 2 bad input (one line on stderr says which),\n"
        "130 interrupted, 143 ended by SIGTERM."
    )
    return "\n\n".join([head, *map(_verb, verbs)]) + "\n"


def _verb(verb: Verb) -> str:
    config = "`--config FILE` reads any of these from YAML; `--print-config` prints them all, and stops."
    about = [verb.description.strip(), config if verb.configurable else ""]
    examples = f"```sh\n{textwrap.dedent(verb.example).strip()}\n```"
    example = f"<!-- not run: an example of the help -->\n{examples}"
    hints, texts = typing.get_type_hints(verb.options), described(verb.options)
    rows = [
        (_flag(verb, field.name, hints[field.name]), _default(field), texts[field.name].rstrip("."))
        for field in attrs.fields(verb.options)
    ]
    flags = table(("flag", "default", "meaning"), rows) if rows else ""
    said = f"{verb.summary[0].upper()}{verb.summary[1:]}."
    return "\n\n".join(filter(None, [f"## `{verb.name}` {{ #{verb.name} }}", said, *about, example, flags]))


def _flag(verb: Verb, field: str, hint: Any) -> str:
    if field == verb.positional:
        return f"`{field.upper()}`"
    if field in verb.entries:
        entries = verb.entries[field]
        return f"`{entries.flag} NAME`" + "".join(f", `{fill} {entries.filled}`" for fill in entries.fill[:1])
    flag = flag_of(verb, field)
    if hint is bool:
        return f"`{flag}`, `--no-{flag.removeprefix('--')}`"
    if typing.get_origin(hint) is Mapping:
        return f"`{flag} KEY=VALUE`"
    return f"`{flag} {placeholder(hint)}`"


def _default(field: attrs.Attribute[Any]) -> str:
    if field.default is attrs.NOTHING:
        return "required"
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    return f"`{field.default}`" if isinstance(field.default, str | int | float) else ""


def pages(docs: Path = DOCS) -> dict[Path, str]:
    """Every generated file below `docs` and what should be in it."""
    solvers = first_party()
    found = {name: default_and_practical(cls) for name, cls in solvers.items()}
    made = {docs / "solvers" / f"{name}.md": page(cls, *found[name]) for name, cls in solvers.items()}
    made[docs / "solvers" / "README.md"] = index(solvers, found)
    made[docs / "reference" / "cli.md"] = command_line()
    choose = (docs / "choose.md").read_text(encoding="utf-8")
    for name, block in (("memory", memory(solvers, found)), ("proved", proved(solvers))):
        choose = with_block(choose, name, block)
    return made | {docs / "choose.md": choose}


def stale(made: Mapping[Path, str]) -> list[Path]:
    """Files that are not what they should be, and pages of solvers that are no more."""
    wrong = [path for path, text in made.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    folders = {path.parent for path in made if path.parent.name == "solvers"}
    return wrong + sorted(path for folder in folders for path in folder.glob("*.md") if path not in made)


def main(argv: Sequence[str] | None = None, docs: Path = DOCS) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    check = parser.parse_args(argv).check
    made = pages(docs)
    for path in stale(made):
        shown = path.relative_to(docs.parent)
        if check:
            print(f"{shown} is out of date; run: python docs/generate.py", file=sys.stderr)
        elif path in made:
            path.parent.mkdir(exist_ok=True)
            path.write_text(made[path], encoding="utf-8")
            print(f"written: {shown}")
        else:
            path.unlink()
            print(f"removed: {shown}")
    return int(check and bool(stale(made)))


if __name__ == "__main__":
    sys.exit(main())
