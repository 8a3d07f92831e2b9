"""YAML for options: safe, and with numbers read as people write them."""

from __future__ import annotations

import importlib.resources
import re
import textwrap
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import attrs
import yaml

from nlhf_zoo.errors import BadInput
from nlhf_zoo.plain import from_yaml

__all__ = ["as_yaml", "commented_yaml", "read_config", "recipes", "scalar"]

RECIPE = "recipe:"


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where 1e-4 is a text and 2024-01-01 a date; here as in YAML 1.2, a number and a text."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's own class attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """Quotes a text that `_Loader` would take for a number."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def scalar(text: str) -> Any:
    """The value of KEY=VALUE on the command line.

    Raises:
        BadInput: not YAML.
    """
    try:
        return from_yaml(text, _Loader)
    except ValueError:
        raise BadInput(f"{text!r} is not a YAML value; quote it") from None


def read_config(path: str) -> dict[str, Any]:
    """The options in a YAML file, or in a recipe that came with the package, "recipe:NAME".

    An empty mapping where everything is commented out.

    Raises:
        BadInput: unreadable, no such recipe, not YAML, or not a mapping of names.
    """
    text = _recipe(path.removeprefix(RECIPE)) if path.startswith(RECIPE) else _file(path)
    try:
        content = from_yaml(text, _Loader)
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise BadInput(f"{path}: holds {type(content).__name__}, not options; write one `name: value` a line")
    return dict(content)


def recipes() -> tuple[str, ...]:
    """Names of the recipes."""
    return tuple(sorted(Path(str(entry)).stem for entry in _shelf().iterdir() if entry.name.endswith(".yaml")))


def _shelf() -> Traversable:
    return importlib.resources.files("nlhf_zoo").joinpath("recipes")


def _recipe(name: str) -> str:
    if name not in recipes():
        raise BadInput(f"no recipe {name!r}; there are {', '.join(recipes())}")
    return _shelf().joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def _file(path: str) -> str:
    from nlhf_zoo.data.files import open_text  # its package needs torch, and --help must not

    with open_text(Path(path)) as handle:
        return handle.read()


def commented_yaml(options: type, values: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """Every option as a YAML document, each below its help; one that is required and missing is commented out.

    Args:
        options: an attrs class.
        values: those given; the class's defaults stand for the others.
        texts: option -> help.
    """
    lines: list[str] = []
    for field in attrs.fields(options):
        lines += textwrap.wrap(texts.get(field.name, ""), 100, initial_indent="# ", subsequent_indent="# ")
        if field.name not in values and field.default is attrs.NOTHING:
            lines += [f"# {field.name}: required", ""]
            continue
        value = values[field.name] if field.name in values else _default(field)
        lines += [as_yaml({field.name: _plain(value)}).rstrip("\n"), ""]
    return "\n".join(lines)


def _default(field: attrs.Attribute[Any]) -> Any:
    return field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def as_yaml(options: Mapping[str, Any]) -> str:
    """Plain values as a YAML document that `read_config` reads back equal."""
    return yaml.dump(dict(options), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
