"""Judges from their registered names and options, a cache included where one is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import PreferenceOracle
from nlhf_zoo.registry import lookup

__all__ = ["Traits", "build_oracle", "essential_options", "traits"]

Options = Mapping[str, Any]
Factory = TypeVar("Factory", bound=Callable[..., PreferenceOracle])


@attrs.frozen(kw_only=True)
class Traits:
    """What a registered factory says of itself beside its signature; a plugin may set it by `@traits(...)`.

    Attributes:
        keeps_verdicts: it takes `cache=PATH`, and its answers cost enough that a run keeps them by default.
        essential: the part of its options that changes answers; a run may be resumed with the rest changed.
    """

    keeps_verdicts: bool = False
    essential: Callable[[Options], Options] = dict


_ATTRIBUTE = "nlhf_zoo_traits"


def traits(
    *,
    keeps_verdicts: bool = False,
    free: frozenset[str] = frozenset(),
    essential: Callable[[Options], Options] | None = None,
) -> Callable[[Factory], Factory]:
    """Mark a factory.

    Args:
        free: names of options that do not change answers.
        essential: in place of `free`, where that is not all there is to say.
    """

    def without(options: Options) -> Options:
        return {name: value for name, value in options.items() if name not in free}

    def mark(factory: Factory) -> Factory:
        setattr(factory, _ATTRIBUTE, Traits(keeps_verdicts=keeps_verdicts, essential=essential or without))
        return factory

    return mark


def build_oracle(name: str, options: Options, *, verdicts: Path | None = None) -> PreferenceOracle:
    """The judge registered as `name`.

    Args:
        options: keyword arguments of its factory, and `cache`: a file in which its answers are kept, which
            every judge of texts has.
        verdicts: the file of those that keep their answers by default, and are given no `cache`.

    Raises:
        BadInput: no such judge, or options that it does not take.
    """
    factory = lookup("oracles", name)
    given = dict(options)
    if verdicts is not None and _traits(factory).keeps_verdicts:
        given.setdefault("cache", str(verdicts))
    cache = None if "cache" in inspect.signature(factory).parameters else given.pop("cache", None)
    try:
        oracle = factory(**given)
    except TypeError as error:
        reason = str(error).rpartition("() ")[2]
        raise BadInput(f"oracle {name} {reason}; see nlhf-zoo list") from None
    return oracle if cache is None else _cached(name, options, oracle, str(cache))


def essential_options(name: str, options: Options) -> Options:
    """Those options of a registered judge that change its answers."""
    essential = _traits(lookup("oracles", name)).essential(options)
    return {key: value for key, value in essential.items() if key != "cache"}


def _cached(name: str, options: Options, oracle: PreferenceOracle, path: str) -> PreferenceOracle:
    from nlhf_zoo.oracles.verdicts.cached import CachedOracle
    from nlhf_zoo.oracles.verdicts.files import fingerprint
    from nlhf_zoo.oracles.verdicts.store import VerdictStore

    essential = essential_options(name, options)
    # A judge is its files as well as its options: retrained in the same folder, it is another.
    files = {key: fingerprint(value) for key, value in essential.items() if isinstance(value, str)}
    own = getattr(oracle, "identity", {})
    return CachedOracle(oracle, VerdictStore(path), {"oracle": name, "options": essential, "files": files, "own": own})


def _traits(factory: Any) -> Traits:
    return getattr(factory, _ATTRIBUTE, None) or Traits()
