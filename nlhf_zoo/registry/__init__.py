"""Plugins: the hooks (`hookimpl`, `hookspecs`) and what was found (`load`, `lookup`)."""

from nlhf_zoo.registry.hookspecs import hookimpl
from nlhf_zoo.registry.plugins import Broken, Entry, Kind, Registry, load, lookup, solvers

__all__ = ["Broken", "Entry", "Kind", "Registry", "hookimpl", "load", "lookup", "solvers"]
