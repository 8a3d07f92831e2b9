"""YAML for options: safe, and with numbers read as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nlhf_zoo.errors import BadInput

__all__ = ["as_yaml", "read_config", "scalar"]


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
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError:
        raise BadInput(f"{text!r} is not a YAML value; quote it") from None


def read_config(path: str) -> dict[str, Any]:
    """The options in a YAML file; an empty mapping where everything is commented out.

    Raises:
        BadInput: unreadable, not YAML, or not a mapping of names.
    """
    from nlhf_zoo.data.files import open_text  # its package needs torch, and --help must not

    with open_text(Path(path)) as handle:
        text = handle.read()
    try:
        content = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadInput(f"{path}: not YAML{place}: {getattr(error, 'problem', None) or error}") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise BadInput(f"{path}: holds {type(content).__name__}, not options; write one `name: value` a line")
    return dict(content)


def as_yaml(options: Mapping[str, Any]) -> str:
    """Plain values as a YAML document that `read_config` reads back equal."""
    return yaml.dump(dict(options), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
