"""What must not be written down: passwords, tokens and keys, known by their names or by what they look like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["public", "redact", "spilt"]

_UNMISTAKABLE = r"[\w-]*(?:secret|passw(?:or)?d|passphrase|api[_-]?key|access[_-]?key|private[_-]?key|credentials?)"
_NAME = rf"(?:[\w-]*token|(?<![\w-])key|{_UNMISTAKABLE})"
_VALUE = r"""("[^"]*"|'[^']*'|[^\s'"]+)"""
_ADDRESS = (
    (re.compile(r"(\w+://)[^/\s@]+@"), r"\1•••@"),
    (re.compile(r"([?&][\w-]*(?:key|token|secret|password)=)[^&\s'\"]+", re.IGNORECASE), r"\1•••"),
)
_TEXT = (
    (re.compile(rf"({_NAME}\s*[=:]\s*|--{_NAME}\s+){_VALUE}", re.IGNORECASE), r"\1•••"),
    (re.compile(r"\b(?:hf_|sk-|gsk_|xai-|ghp_|gho_|github_pat_|glpat-|xox[abp]-)[A-Za-z0-9_-]{8,}"), "•••"),
    *_ADDRESS,
    (re.compile(r"(\bbearer\s+)\S+", re.IGNORECASE), r"\1•••"),
)
_KEY = re.compile(
    r"(?:hf_|ghp_|gho_|gsk_|xai-)[A-Za-z0-9]{30,}|sk-[\w-]*[A-Za-z0-9]{20,}|github_pat_\w{40,}|glpat-[\w-]{20,}"
    r"|AIza[\w-]{35}|AKIA[A-Z0-9]{16}"
)
"""A whole setting that is one: stricter than in a text for show, since hf_something may be the name of a folder."""


def redact(text: str) -> str:
    """The same text with what looks like a password, token or key put out of sight."""
    for pattern, replacement in _TEXT:
        text = pattern.sub(replacement, text)
    return text


def public(value: Any) -> Any:
    """Plain settings, nested as they are, without the entries that are called a key, token, secret or password."""
    if isinstance(value, Mapping):
        return {name: public(one) for name, one in value.items() if not re.fullmatch(_NAME, str(name), re.IGNORECASE)}
    return [public(one) for one in value] if isinstance(value, list | tuple) else value


def spilt(value: Any, called: str) -> str | None:
    """The dotted name of a setting that surely holds a secret, by its name or its looks; `None` where none does."""
    if isinstance(value, Mapping | list | tuple):
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        return next(filter(None, (spilt(one, f"{called}.{name}") for name, one in entries)), None)
    if not isinstance(value, str) or not value:
        return None
    named = re.fullmatch(_UNMISTAKABLE, called.rpartition(".")[2], re.IGNORECASE)
    return called if named or _KEY.fullmatch(value) or any(look.search(value) for look, _ in _ADDRESS) else None
