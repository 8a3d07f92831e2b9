"""From an options class to flags and back: command line over config file over defaults, errors in one line."""

from __future__ import annotations

import argparse
import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
from jsonargparse import ActionYesNo, ArgumentParser

from nlhf_zoo.cli.config_files import commented_yaml, read_config, scalar
from nlhf_zoo.cli.verb import Verb
from nlhf_zoo.errors import BadInput

__all__ = ["Asked", "described", "flag_of", "placeholder", "read", "saved", "typed"]


@attrs.frozen
class Asked:
    """What the command line asks for: an instance of the verb's options class, and whether as JSON."""

    options: Any
    json: bool


def read(verb: Verb, argv: list[str]) -> Asked | None:
    """The options of a verb; `None` where `--help` or `--print-config` was asked for, and printed.

    Raises:
        BadInput: an unknown flag or key, a value that does not fit, a required one that is missing.
    """
    parser = _parser(verb)
    try:
        # jsonargparse's users write it with an underscore, and it takes that spelling for a flag of its own.
        spelt = ["--print-config" if token == "--print_config" else token for token in argv]
        given = _parsed(verb, parser, _with_negative_numbers(spelt))
    except SystemExit:  # how argparse ends after --help
        return None
    as_json, shown = given.pop("json", False), given.pop("print_config", False)
    values: dict[str, Any] = {}
    for path in given.pop("config", None) or []:
        _lay_over(values, _from_config(verb, parser, path))
    _lay_over(values, given)
    if shown:
        missing = _missing(verb, values)
        # What is required stands in for itself, so that all else is checked as in a run.
        _made(verb, {**dict.fromkeys(missing, "x"), **values})
        print(commented_yaml(verb.options, values, described(verb.options)), end="")
        return None
    _require(verb, values)
    return Asked(_made(verb, values), as_json)


def _made(verb: Verb, values: Mapping[str, Any]) -> Any:
    try:
        return verb.options(**values)
    except BadInput:
        raise
    except (TypeError, ValueError) as error:  # attrs' own validators
        raise BadInput(f"{error.args[0] if error.args else error}") from None


def saved(options: Any) -> dict[str, Any]:
    """The options as plain values, those apart that only say where the answer goes."""
    return attrs.asdict(options, filter=lambda field, _: field.metadata.get("saved", True))


def described(cls: type) -> dict[str, str]:
    """Field -> text, from the Attributes section of a class's docstring."""
    lines = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
    section = re.split(r"\n(?=\S)", lines, maxsplit=1)[0]
    found = re.findall(r"^    (\w+): ((?:.|\n(?! {4}\w|\n))*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def typed(values: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> None:
    """Pass where the values fit the type hints that go by the same names.

    Raises:
        BadInput: one does not; the message begins with `where`.
    """
    parser = ArgumentParser(exit_on_error=False)
    for name in values.keys() & hints.keys():
        try:
            parser.add_argument(f"--{name}", type=hints[name])
        except ValueError:  # a hint that jsonargparse does not know: the class itself will judge
            continue
        try:
            parser.parse_object({name: values[name]}, defaults=False)
        except (argparse.ArgumentError, TypeError, ValueError):
            raise BadInput(f"{where}: {name} must be {_words(hints[name])}, got {values[name]!r}") from None


class _Assign(argparse.Action):
    """KEY=VALUE, one or several, gathered over repeated flags."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        gathered = dict(getattr(namespace, self.dest, None) or {})
        for text in values:
            key, value = self.pair(text, option_string)
            gathered[key] = scalar(value)
        setattr(namespace, self.dest, gathered)

    @staticmethod
    def pair(text: str, option_string: str | None) -> tuple[str, str]:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BadInput(f"{option_string} takes KEY=VALUE, got {text!r}")
        return key, value


class _Begin(argparse.Action):
    """NAME of a new entry of a list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest, None) or []), {"name": values}])


class _Fill(_Assign):
    """KEY=VALUE or KEY=VALUE,VALUE, for the last entry of a list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        entries = getattr(namespace, self.dest, None)
        if not entries:
            raise BadInput(f"{option_string} {values[0]}: stands before the entry that it is about; put it after")
        options = entries[-1].setdefault("options", {})
        for text in values:
            key, value = self.pair(text, option_string)
            options[key] = scalar(f"[{value}]") if "," in value and value[0] != "[" else scalar(value)


def flag_of(verb: Verb, field: str) -> str:
    """How the command line spells a field."""
    if field in verb.entries:
        return verb.entries[field].flag
    return verb.flags.get(field, "--" + field.replace("_", "-"))


def _parser(verb: Verb) -> ArgumentParser:
    what = f" {verb.positional.upper()}" if verb.positional else ""
    parser = ArgumentParser(
        prog=f"nlhf-zoo {verb.name}",
        usage=f"nlhf-zoo {verb.name}{what} [--flag VALUE ...]",
        description=f"{verb.summary[0].upper()}{verb.summary[1:]}.\n\n{verb.description}".strip(),
        epilog=f"example:\n{verb.example.rstrip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
    )
    texts, hints = described(verb.options), typing.get_type_hints(verb.options)
    for field in attrs.fields(verb.options):
        _add(parser, verb, field, hints[field.name], texts.get(field.name, ""))
    if verb.configurable:
        parser.add_argument(
            "--config",
            type=str,
            action="append",
            metavar="FILE",
            help="YAML file of options, by the names above with _ for -, or recipe:NAME; flags go before it, wherever"
            " they stand",
        )
        parser.add_argument(
            "--print-config",
            action="store_true",
            help="print the whole configuration that these flags and files make, as a commented YAML file, and stop",
        )
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout, all else on stderr")
    return parser


def _add(parser: ArgumentParser, verb: Verb, field: attrs.Attribute[Any], hint: Any, text: str) -> None:
    text = text if text.endswith("...") else text.removesuffix(".")
    default = None
    if field.default is attrs.NOTHING:
        text = f"{text} (required)"
    elif hint is bool or isinstance(field.default, str | int | float):
        default = field.default
        text = f"{text} (default: {'on' if default is True else 'off' if default is False else default})"
    if field.name == verb.positional:
        parser.add_argument(field.name, nargs="?", help=text)
        return
    options: dict[str, Any] = {"dest": field.name, "default": default, "help": text}
    if field.name in verb.entries:
        entries = verb.entries[field.name]
        parser.add_argument(entries.flag, action=_Begin, metavar="NAME", **options)
        options["help"] = f"{entries.filled}, of the {entries.flag} before it"
        parser.add_argument(*entries.fill, action=_Fill, nargs="+", metavar="KEY=VALUE[,VALUE]", **options)
    elif hint is bool:
        parser.add_argument(flag_of(verb, field.name), action=ActionYesNo(no_prefix="no-"), **options)
    elif typing.get_origin(hint) is Mapping or hint is Mapping:
        parser.add_argument(flag_of(verb, field.name), action=_Assign, nargs="+", metavar="KEY=VALUE", **options)
    else:
        parser.add_argument(flag_of(verb, field.name), type=hint, metavar=placeholder(hint), **options)


def placeholder(hint: Any) -> str:
    """What help writes for a value of this type."""
    kinds = _alternatives(hint)
    if typing.get_origin(kinds[0]) is Literal:
        return "{" + ",".join(map(str, typing.get_args(kinds[0]))) + "}"
    return {int: "N", float: "X", Path: "PATH"}.get(kinds[0], "TEXT") if len(kinds) == 1 else "VALUE"


def _alternatives(hint: Any) -> list[Any]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [kind for kind in (typing.get_args(hint) if union else (hint,)) if kind is not types.NoneType]


def _words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    words: list[str] = []
    for kind in _alternatives(hint):
        if typing.get_origin(kind) is Literal:
            words.append("one of " + ", ".join(map(str, typing.get_args(kind))))
        else:
            words.append(names.get(kind) or getattr(kind, "__name__", str(kind)).lower())
    return " or ".join(words)


def _with_negative_numbers(argv: list[str]) -> list[str]:
    # argparse takes -1e-3 for a flag; written as --flag=-1e-3 it is a value.
    joined: list[str] = []
    for token in argv:
        before = joined[-1] if joined else ""
        if re.match(r"-\.?\d", token) and before.startswith("--") and "=" not in before:
            joined[-1] = f"{before}={token}"
        else:
            joined.append(token)
    return joined


def _parsed(verb: Verb, parser: ArgumentParser, argv: list[str]) -> dict[str, Any]:
    try:
        namespace = parser.parse_args(argv, defaults=False)
    except argparse.ArgumentError as error:
        raise BadInput(_explained(verb, str(error))) from None
    given = {key: value for key, value in vars(namespace).items() if value is not None}
    for key, value in given.items():
        _finite(flag_of(verb, key), value)
    return given


def _explained(verb: Verb, message: str) -> str:
    help_ = f"see nlhf-zoo {verb.name} --help"
    if message.startswith("unrecognized arguments: "):
        first = message.removeprefix("unrecognized arguments: ").split(" ")[0]
        if not first.startswith("-"):
            return f"unexpected argument {first!r}; {help_}"
        name = first.partition("=")[0]
        filling = [flag for entries in verb.entries.values() for flag in entries.fill]
        fields = (flag_of(verb, f.name) for f in attrs.fields(verb.options))
        known = [*fields, *filling, "--config", "--print-config", "--json", "--help"]
        near = difflib.get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.5)
        return f"unknown flag {name}; " + (f"did you mean {near[0]}?" if near else help_)
    if match := re.match(r"argument (\S+?)(?:/\S+)?: (.*)", message):
        if "expected one argument" in match[2] or "expected at least one" in match[2]:
            return f"{match[1]} needs a value; {help_}"
        if "ignored explicit argument" in match[2]:
            return f"{match[1]} takes no value"
        return f"{match[1]}: {match[2]}"
    if match := re.match(r'Parser key "(\w+)":', message):
        return _misfit(verb, match[1], flag_of(verb, match[1]), message)
    return " ".join(message.split())


def _misfit(verb: Verb, field: str, called: str, message: str) -> str:
    hint = typing.get_type_hints(verb.options).get(field)
    value = re.search(r"(?:Got|Given) value: (.*)", message, flags=re.DOTALL)
    if hint is None or value is None:
        return f"{called}: {message.partition(':')[2]}"
    return f"{called} must be {_words(hint)}, got {value[1].strip()!r}"


def _from_config(verb: Verb, parser: ArgumentParser, path: str) -> dict[str, Any]:
    hints = typing.get_type_hints(verb.options)
    names = {flag_of(verb, field).removeprefix("--").replace("-", "_"): field for field in hints}
    names |= {field: field for field in hints}
    values: dict[str, Any] = {}
    for key, value in read_config(path).items():
        field = names.get(key.replace("-", "_"))
        if field is None:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"see nlhf-zoo {verb.name} --help"
            raise BadInput(f"{path}: unknown key {key!r}; {hint}")
        if field in values:
            raise BadInput(f"{path}: {key!r} is there twice, once as {field!r}; drop one")
        values[field] = _config_value(verb, parser, path, field, value)
    here = Path(path).parent
    if verb.record and "out" in values and Path(path).name == "config.yaml" and (here / verb.record).is_file():
        values["out"] = here
    return values


def _config_value(verb: Verb, parser: ArgumentParser, path: str, field: str, value: Any) -> Any:
    hint = typing.get_type_hints(verb.options)[field]
    if field in verb.entries:
        return value if isinstance(value, list) else [value]
    if typing.get_origin(hint) is Mapping:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise BadInput(f"{path}: {field} must be a mapping of names to values, got {value!r}")
        return dict(value)
    if value is None:
        if types.NoneType in typing.get_args(hint):
            return None
        raise BadInput(f"{path}: {field} must be {_words(hint)}, got null; drop the line for the default")
    if hint is bool and not isinstance(value, bool):
        raise BadInput(f"{path}: {field} must be true or false, got {value!r}")
    try:
        checked = parser.parse_object({field: value}, defaults=False)[field]
    except argparse.ArgumentError as error:
        raise BadInput(f"{path}: {_misfit(verb, field, field, str(error))}") from None
    _finite(f"{path}: {field}", checked)
    return checked


def _finite(called: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{called} must be a finite number, got {value}")


def _lay_over(values: dict[str, Any], upper: Mapping[str, Any]) -> None:
    """Options of the same solver, judge, ... add up; those of one that is replaced by another go with it."""
    for name in [name for name in upper if name in values and values[name] != upper[name]]:
        values.pop(f"{name}_options", None)
    for key, value in upper.items():
        if isinstance(value, Mapping):
            values[key] = {**values.get(key, {}), **value}
        else:
            values[key] = value


def _require(verb: Verb, values: Mapping[str, Any]) -> None:
    missing = _missing(verb, values)
    if missing:
        names = [name.upper() if name == verb.positional else flag_of(verb, name) for name in missing]
        where = ", or a --config that has it" if verb.configurable else ""
        raise BadInput(f"{verb.name} needs {', '.join(names)}{where}; see nlhf-zoo {verb.name} --help")


def _missing(verb: Verb, values: Mapping[str, Any]) -> list[str]:
    return [f.name for f in attrs.fields(verb.options) if f.default is attrs.NOTHING and values.get(f.name) is None]
