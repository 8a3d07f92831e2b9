"""The local files that a run reads: named from the root, and told apart by their content. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["digests", "named", "rooted"]

_OWN = ("model", "reference", "tokenizer", "prompts", "eval_prompts", "labelled_pairs")
_JUDGES = ("oracle_options", "eval_oracle_options")
_OF_A_JUDGE = ("path", "template")


def rooted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run, with paths that hold from any folder; what is no file or folder here stays."""
    return _with_files(settings, lambda path: str(path.absolute()))


def named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same, files and folders by their last name alone: wherever they lie."""
    return _with_files(settings, lambda path: path.name)


def digests(settings: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of all that lies in these files and folders, by the name of the setting; what is no file has none.

    A judge that is a Python function counts with the file of its module.
    """
    found: dict[str, str] = {}
    for name in (*_OWN, *_JUDGES):
        paths = _paths({name: settings.get(name)})
        if name in _JUDGES:
            paths += _sources(settings.get(name))
        if paths:
            found[name] = _digest(paths)
    return found


def _sources(options: Any) -> list[Path]:
    """Files of the modules in which the functions of a judge, or of an ensemble's members, are written."""
    if isinstance(options, list | tuple):
        return [path for one in options for path in _sources(one)]
    if not isinstance(options, Mapping):
        return []
    named = options.get("function")
    files = [path for value in options.values() for path in _sources(value)]
    if isinstance(named, str) and ":" in named:
        with contextlib.suppress(ImportError, ValueError):  # who builds the judge says so
            spec = importlib.util.find_spec(named.partition(":")[0])
            if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
                files.append(Path(spec.origin))
    return files


def _paths(settings: Mapping[str, Any]) -> list[Path]:
    paths: list[Path] = []
    _with_files(settings, lambda path: paths.append(path) or str(path))
    return paths


def _digest(paths: list[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        for name, file in _files(path):
            with file.open("rb") as handle:
                found.update(f"{name} {hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest()


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield path.name, path
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield f"{path.name}/{file.relative_to(path).as_posix()}", file


def _with_files(settings: Mapping[str, Any], change: Callable[[Path], str]) -> dict[str, Any]:
    changed = dict(settings)
    for name in _OWN:
        if name in changed and _is_local(changed[name]):
            changed[name] = change(Path(changed[name]))
    for name in _JUDGES:
        if name in changed:
            changed[name] = _judge(changed[name], change)
    return changed


def _judge(value: Any, change: Callable[[Path], str]) -> Any:
    # The members of an ensemble have options of their own.
    if isinstance(value, Mapping):
        return {
            key: change(Path(one)) if key in _OF_A_JUDGE and _is_local(one) else _judge(one, change)
            for key, one in value.items()
        }
    return [_judge(one, change) for one in value] if isinstance(value, list | tuple) else value


def _is_local(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and Path(value).exists()
