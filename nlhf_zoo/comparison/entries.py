"""Games and solvers as people write them down, read into frozen settings; grids are spread out."""

from __future__ import annotations

import difflib
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from nlhf_zoo.comparison.config import CompareConfig
from nlhf_zoo.errors import BadInput
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.local_files import digests, named, rooted

__all__ = [
    "TRAINED_HOW",
    "GameEntry",
    "SolverEntry",
    "divided",
    "game_entries",
    "grid_points",
    "label_of",
    "solver_entries",
]

TRAINED_HOW = (
    *("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("batch_size", "accumulate", "num_samples", "inner_steps"),
)
"""Options of `nlhf-zoo train` that a contestant may set for itself, as `train.NAME`: none of them changes the game."""
_PREFIX = "train."


def _number(_: Any, field: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise BadInput(f"{field.name} must be >= 0 and a finite number, got {value!r}")


def _whole_number(_: Any, field: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"{field.name} must be >= 1 and a whole number, got {value!r}")


def _text(_: Any, field: Any, value: Any) -> None:
    if not isinstance(value, str):
        raise BadInput(f"{field.name} must be a text, got {value!r}")


@attrs.frozen(kw_only=True)
class GameEntry:
    """One game of a comparison, on a table or (`train`) on a language model; hashable, as its mappings do not change.

    Attributes:
        name: registered name or file; of language-model runs, what to call them.
        label: what it is called in results.
        options: parameters of a registered game.
        train: options of `nlhf-zoo train`, where it is a language model's; paths are absolute.
        queries, tokens: budget of a run on it, where it is another than the comparison's.
        digest: of the files that it reads, so that a changed file is another game.
    """

    name: str
    label: str = attrs.field(converter=str)
    options: Mapping[str, Any] = attrs.field(factory=dict, hash=False)
    train: Mapping[str, Any] | None = attrs.field(default=None, hash=False)
    beta: float = attrs.field(default=0.1, validator=_number)
    comparisons: int | None = attrs.field(default=None, validator=attrs.validators.optional(_whole_number))
    reference: str | None = None
    divergence: str = attrs.field(default="reverse_kl", validator=_text)
    divergence_options: Mapping[str, Any] = attrs.field(factory=dict, hash=False)
    smoothing: float = attrs.field(default=0.5, validator=_number)
    kind: Literal["auto", "probabilities", "counts"] = "auto"
    policy: str = attrs.field(default="table", validator=_text)
    policy_options: Mapping[str, Any] = attrs.field(factory=dict, hash=False)
    queries: int | None = attrs.field(default=None, validator=attrs.validators.optional(_whole_number))
    tokens: int | None = attrs.field(default=None, validator=attrs.validators.optional(_whole_number))
    digest: str = ""

    @functools.cached_property
    def identity(self) -> Mapping[str, Any]:
        """What makes it this game: all but what it is called, where its files lie, and what a run may cost."""
        found = attrs.asdict(self)
        for name in ("label", "queries", "tokens"):
            del found[name]
        if self.train is not None:
            found["train"] = _essential(named(self.train))
        elif self.digest:
            found["name"] = Path(self.name).name
            found["reference"] = self.reference and Path(self.reference).name
        return found


def _essential(train: Mapping[str, Any]) -> dict[str, Any]:
    """Without what does not change a judge's answers: a budget that was spent may be raised."""
    from nlhf_zoo.oracles.build import essential_options

    return {
        **train,
        **{
            f"{judge}_options": essential_options(train[judge], train.get(f"{judge}_options") or {})
            for judge in ("oracle", "eval_oracle")
            if train.get(judge)
        },
    }


@attrs.frozen(kw_only=True)
class SolverEntry:
    """One solver of a comparison.

    Attributes:
        points: the hyperparameters to choose from, or the only ones; `train.NAME` are options of its training.
    """

    name: str
    label: str = attrs.field(converter=str)
    points: tuple[Mapping[str, Any], ...]


def grid_points(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the listed values; a value that is no list stays as it is."""
    lists = [value if isinstance(value, list | tuple) else [value] for value in options.values()]
    for values in itertools.product(*lists):
        yield dict(zip(options, values, strict=True))


def label_of(name: str, options: Mapping[str, Any]) -> str:
    """ "nash_mp eta=0.1" """
    return " ".join([name, *(f"{key}={_short(value)}" for key, value in options.items())])


def _short(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def divided(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A point's hyperparameters of the solver, and its options of `nlhf-zoo train` without their prefix.

    Raises:
        BadInput: an option that is not the contestant's to set.
    """
    solver = {key: value for key, value in options.items() if not key.startswith(_PREFIX)}
    train = {key.removeprefix(_PREFIX): value for key, value in options.items() if key.startswith(_PREFIX)}
    for key in train:
        if key not in TRAINED_HOW:
            allowed = ", ".join(_PREFIX + name for name in TRAINED_HOW)
            raise BadInput(f"a solver cannot set {_PREFIX}{key}, which is the game's; it can set {allowed}")
    return solver, train


def solver_entries(config: CompareConfig) -> tuple[SolverEntry, ...]:
    """The contestants, hyperparameters checked.

    Raises:
        BadInput: an unknown solver or hyperparameter, an empty grid, two contestants of one label.
    """
    from nlhf_zoo.drive import configure
    from nlhf_zoo.registry import lookup

    entries: list[SolverEntry] = []
    for raw in config.solvers:
        given = _mapping(raw, "solver", ("name", "options", "label"))
        options = dict(given.get("options") or {})
        name, points = lookup("solvers", str(given["name"])).name, tuple(grid_points(options))
        if not points:
            raise BadInput(f"solver {name}: a grid without a value; give {', '.join(options)} at least one")
        for point in points:
            configure(name, **divided(point)[0])
        fixed = {key: value for key, value in options.items() if not isinstance(value, list | tuple)}
        if len(points) == 1:
            entries.append(SolverEntry(name=name, label=given.get("label") or label_of(name, points[0]), points=points))
        elif config.tune:
            label = given.get("label") or f"{label_of(name, fixed)} tuned"
            entries.append(SolverEntry(name=name, label=label, points=points))
        else:
            called = str(given.get("label") or name)
            entries += [SolverEntry(name=name, label=label_of(called, point), points=(point,)) for point in points]
    _distinct(entries, "solvers")
    return tuple(entries)


def game_entries(raws: Sequence[Any], config: CompareConfig) -> tuple[GameEntry, ...]:
    """The games, with what they leave open taken from `config`.

    Raises:
        BadInput: an unknown key, a file that cannot be read, two games of one label.
    """
    known = [field.name for field in attrs.fields(GameEntry) if field.name != "digest"]
    entries: list[GameEntry] = []
    for raw in raws:
        given = _mapping(raw, "game", known)
        if given.get("train") is not None:
            entries.append(_language_entry(given))
            continue
        varied = {key: given[key] for key in ("beta", "comparisons") if key in given}
        options = dict(given.get("options") or {})
        empty = next((key for key, value in {**options, **varied}.items() if value in ([], ())), None)
        if empty is not None:
            raise BadInput(f"game {given['name']}: {empty} is a list without a value; give it one, or drop it")
        for own in grid_points(varied):
            for point in grid_points(options):
                entries.append(_table_entry(given, config, own, point))
    _distinct(entries, "games")
    return tuple(entries)


def _table_entry(
    given: Mapping[str, Any], config: CompareConfig, own: Mapping[str, Any], options: Mapping[str, Any]
) -> GameEntry:
    from nlhf_zoo.games.named import is_registered

    name, reference = str(given["name"]), given.get("reference")
    file = None if is_registered(name) else name
    policy = {"policy": config.policy, "policy_options": dict(config.policy_options)}
    settings = {
        "beta": config.beta,
        "comparisons": config.comparisons,
        **policy,
        **given,
        **own,
        "name": name if file is None else str(Path(name).absolute()),
        "options": options,
        "reference": None if reference is None else str(Path(reference).absolute()),
        "label": given.get("label") or label_of(Path(name).name if file else name, {**options, **own}),
        "digest": _digest([path for path in (file, reference) if path is not None]),
    }
    return _built(settings)


def _language_entry(given: Mapping[str, Any]) -> GameEntry:
    train = given["train"]
    if not isinstance(train, Mapping):
        raise BadInput(f"game {given['name']}: train must be a mapping of options of nlhf-zoo train, got {train!r}")
    stray = next((key for key in given if key not in ("name", "label", "train", "queries", "tokens")), None)
    if stray is not None:
        raise BadInput(f"game {given['name']}: {stray} goes into its train mapping")
    for key in ("out", "solver", "solver_options", "seed", "resume", "estimate"):
        if key in train:
            raise BadInput(f"game {given['name']}: train has {key!r}, which the comparison sets itself; drop it")
    _check_keys(f"game {given['name']}: train", train, [field.name for field in attrs.fields(TrainConfig)])
    placed = rooted(train)
    return _built(
        {
            "name": str(given["name"]),
            "label": given.get("label") or str(given["name"]),
            "train": placed,
            **{budget: given[budget] for budget in ("queries", "tokens") if budget in given},
            "beta": train.get("beta", 1e-4),
            "digest": " ".join(digests(placed).values()),
        }
    )


def _built(settings: Mapping[str, Any]) -> GameEntry:
    try:
        return GameEntry(**settings)
    except (TypeError, ValueError) as error:
        reason = error.args[0] if error.args else error  # attrs' own validators say more in further arguments
        raise BadInput(f"game {settings['label']}: {reason}") from None


def _mapping(raw: Any, what: str, known: Sequence[str]) -> Mapping[str, Any]:
    given = {"name": raw} if isinstance(raw, str) else raw
    if not isinstance(given, Mapping):
        raise BadInput(f"{what}: must be a name, or a mapping with name and options, got {given!r}")
    _check_keys(f"{what} {given.get('name', '')}", given, known)
    if given.get("name") is None and given.get("train") is not None:
        given = {"name": "language model", **given}
    if given.get("name") is None:
        raise BadInput(f"{what}: has no name: {json.dumps(given, default=str)}")
    if not isinstance(given.get("options") or {}, Mapping):
        raise BadInput(f"{what} {given['name']}: options must be a mapping, got {given['options']!r}")
    return given


def _check_keys(where: str, given: Mapping[Any, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise BadInput(f"{where}: unknown key {key!r}; {hint}")


def _distinct(entries: Sequence[GameEntry] | Sequence[SolverEntry], what: str) -> None:
    labels = [entry.label for entry in entries]
    # A file's name may be of any bytes; what is written down is Unicode.
    odd = next((label for label in labels if label.encode("utf-8", "replace").decode("utf-8") != label), None)
    if odd is not None:
        raise BadInput(
            f"the {what.removesuffix('s')} {odd!r} has no name in Unicode; rename the file, or give a `label:`"
        )
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise BadInput(f"two {what} are called {twice!r}; drop one, or give it a `label:` in a YAML file")


def _digest(paths: Sequence[str]) -> str:
    if not paths:
        return ""
    found = hashlib.sha256()
    for path in paths:
        try:
            found.update(Path(path).read_bytes())
        except OSError:
            continue  # whoever reads it next says what is wrong with it
    return found.hexdigest()
