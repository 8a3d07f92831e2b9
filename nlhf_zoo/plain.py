"""Answers in the types that JSON and YAML have, and texts in these read: whatever they hold, safely."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["from_json", "from_yaml", "plain"]


def plain(value: Any) -> Any:
    """The value in JSON's types: a number that is not finite is null, an unknown object its text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def from_json(text: str | bytes, **how: Any) -> Any:
    """What `json.loads` reads.

    Raises:
        ValueError: not JSON, not UTF-8, nested too deeply, or a number of thousands of digits.
    """
    try:
        return json.loads(text, **how)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def from_yaml(text: str, loader: Any = None) -> Any:
    """What YAML's safe loader reads: plain values, and no object of any class.

    Args:
        loader: in place of `yaml.SafeLoader`, and a subclass of it.

    Raises:
        ValueError: not YAML, nested too deeply, or a value that its tag does not fit; one line, with the place.
    """
    import yaml

    try:
        return yaml.load(text, loader or yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"not YAML{place}: {reason}") from None
    except RecursionError:
        raise ValueError("not YAML that is read here: nested too deeply") from None
    # What the loader makes of `!!int x`, `!!bool x`, `!!timestamp x`, 2020-99-99, and a number of thousands of digits.
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(f"not YAML: a value that its type does not fit ({error})") from None
