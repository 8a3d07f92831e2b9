"""`nlhf-zoo list`: everything that is registered, and what did not load."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from nlhf_zoo.cli.verb import Answer, Verb

if TYPE_CHECKING:
    from rich.console import Console

    from nlhf_zoo.registry import Entry

__all__ = ["VERB"]


@attrs.frozen(kw_only=True)
class ListOptions:
    """`nlhf-zoo list` takes none."""


def run(options: ListOptions) -> Answer:
    """Load every plugin and describe what it brought."""
    from nlhf_zoo.registry import load

    registry = load()
    describers: dict[str, Callable[[Any], dict[str, Any]]] = {
        "solvers": _solver,
        "oracles": _factory,
        "games": _factory,
        "divergences": _divergence,
        "engines": _factory,
    }
    document: dict[str, Any] = {
        kind: [_entry(entry, describe) for entry in getattr(registry, kind).values()]
        for kind, describe in describers.items()
    }
    document["broken"] = [attrs.asdict(broken) for broken in registry.broken]
    return Answer(document, lambda console: _show(document, console))


def _entry(entry: Entry, describe: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": entry.name, "distribution": entry.distribution, "version": entry.version}
    try:
        return row | describe(entry.factory)
    except Exception as error:  # a plugin is foreign code: one that cannot be described must not hide the others
        return row | {"summary": "", "error": f"{type(error).__name__}: {error}"}


def _solver(cls: Any) -> dict[str, Any]:
    solver = cls()
    return {
        "summary": solver.summary,
        "paper": solver.paper,
        "when": solver.when,
        "backends": list(solver.backends),
        "only": solver.only,
        "needs_beta": solver.needs_beta,
        "no_guarantee": "" if solver.guarantees else solver.no_guarantee,
        "hyperparameters": {field.name: getattr(solver, field.name) for field in attrs.fields(cls)},
        "guarantees": [
            {
                "metric": guarantee.metric,
                "iterate": guarantee.iterate,
                "per": guarantee.per,
                "every": guarantee.every,
                "rate": guarantee.bound is not None,
                "limit": guarantee.limit,
                "assumptions": guarantee.assumptions,
                "source": guarantee.source,
            }
            for guarantee in solver.guarantees
        ],
    }


def _factory(factory: Any) -> dict[str, Any]:
    parameters = [
        parameter
        for name, parameter in inspect.signature(factory).parameters.items()
        if name != "seed" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    return {
        "summary": _first_line(factory),
        "required": [p.name for p in parameters if p.default is p.empty],
        "parameters": {p.name: p.default for p in parameters if p.default is not p.empty},
    }


def _divergence(cls: Any) -> dict[str, Any]:
    described = _factory(cls)
    return described | {
        "summary": cls.summary or described["summary"],
        "source": cls.source,
        "strictly_convex": cls.strictly_convex,
    }


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _show(document: Mapping[str, Any], console: Console) -> None:
    from nlhf_zoo.cli.terminal import table

    if not console.is_terminal:  # sentences are wrapped to be read; --json has them whole
        console.width = _WIDTH
    solvers = document["solvers"]
    console.print(
        table(
            "solvers (--solver NAME, --set KEY=VALUE)",
            ("name", "what it is", "hyperparameters", "backends", "from"),
            [
                (s["name"], _summary(s), _settings(s, "hyperparameters"), ", ".join(s.get("backends", ())), _origin(s))
                for s in solvers
            ],
        )
    )
    missing = [(s["name"], _missing(s), s["only"] or "no reason given") for s in solvers if _missing(s)]
    if missing:
        console.print(table("not on every backend", ("solver", "not on", "why"), missing))
    console.print(
        table(
            "what is proved of them, at their default hyperparameters",
            ("solver", "metric", "iterate", "assumptions", "source"),
            [(s["name"], _claim(g), *map(g.get, _GUARANTEE_COLUMNS)) for s in solvers for g in s.get("guarantees", ())],
        )
    )
    unproved = [(s["name"], s["no_guarantee"] or "no reason given") for s in solvers if s.get("guarantees") == []]
    if unproved:
        console.print(table("nothing is proved of", ("solver", "why"), unproved))
    for kind, how, header in (
        ("games", "--game NAME, --game-set KEY=VALUE", "parameters"),
        ("oracles", "train --oracle NAME, --oracle-set KEY=VALUE", "options"),
        ("divergences", "solve --divergence NAME, --divergence-set KEY=VALUE", "parameters"),
        ("engines", "train --engine NAME, --engine-set KEY=VALUE", "options"),
    ):
        rows = [(e["name"], _summary(e), _settings(e, "parameters"), _origin(e)) for e in document[kind]]
        console.print(table(f"{kind} ({how})", ("name", "what it is", header, "from"), rows))
    if document["broken"]:
        rows = [(b["plugin"], b["error"], b["distribution"]) for b in document["broken"]]
        console.print(table("broken plugins, not loaded", ("plugin", "error", "from"), rows))


_WIDTH = 120
"""Of the tables, where there is no terminal to ask."""
_GUARANTEE_COLUMNS = ("iterate", "assumptions", "source")


def _summary(entry: Mapping[str, Any]) -> str:
    return f"cannot be described: {entry['error']}" if "error" in entry else entry["summary"]


def _claim(guarantee: Mapping[str, Any]) -> str:
    """What is bounded, and by a count of what."""
    every = f"{guarantee['every']} steps" if guarantee["every"] > 1 else guarantee["per"]
    said = {"reached": ", no rate", "kept": ", fixed point only", "open": f", each {every}"}
    return guarantee["metric"] + (f" per {every}" if guarantee["rate"] else said[guarantee["limit"]])


def _missing(solver: Mapping[str, Any]) -> str:
    """The backends that a solver does not run on; none of one that cannot be described."""
    return ", ".join(b for b in ("table", "llm") if b not in solver.get("backends", (b,)))


def _settings(entry: Mapping[str, Any], key: str) -> str:
    needed = [f"{name} (required)" for name in entry.get("required", ())]
    return ", ".join([*needed, *(f"{name}={value}" for name, value in entry.get(key, {}).items())])


def _origin(entry: Mapping[str, Any]) -> str:
    return f"{entry['distribution']} {entry['version']}"


VERB = Verb(
    name="list",
    summary="solvers, oracles, games, divergences and engines, with what is proved of them",
    description="Plugins that did not load are listed last, each with its error.",
    example="""\
  nlhf-zoo list
  nlhf-zoo list --json | python -c 'import json, sys; print([s["name"] for s in json.load(sys.stdin)["solvers"]])'
""",
    options=ListOptions,
    run=run,
    configurable=False,
)
