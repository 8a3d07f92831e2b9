"""Plugins of other people, as pip would have installed them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import attrs
import pytest

from nlhf_zoo.cli import main
from nlhf_zoo.registry import load
from nlhf_zoo.registry.plugins import ONLY

__all__ = ["Ended", "ThirdParty"]


@attrs.frozen
class Ended:
    """What a command came to."""

    code: int
    out: str
    err: str


@attrs.define
class ThirdParty:
    """A folder of distributions, which the commands that are run by it find besides those installed.

    They run in this process, which has the libraries loaded; a process of its own takes `environment`.
    """

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    modules: list[str] = attrs.field(factory=list)

    def install(self, distribution: str, *, version: str = "1.2", **sources: str) -> None:
        """A distribution whose modules, with these sources, are each an entry point of their own name."""
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        points = "".join(f"{module} = {module}\n" for module in sources)
        (info / "entry_points.txt").write_text(f"[nlhf_zoo]\n{points}")
        for module, source in sources.items():
            (self.folder / f"{module}.py").write_text(source)
        self.modules += sources

    def run(self, *argv: str, only: str | None = None) -> Ended:
        """`nlhf-zoo` with these arguments, where `only` these entry points, separated by commas, are to be loaded."""
        self.capsys.readouterr()
        with self.monkeypatch.context() as patched:
            patched.syspath_prepend(str(self.folder))
            if only is not None:
                patched.setenv(ONLY, only)
            load.cache_clear()
            try:
                code = main(argv)
            finally:
                load.cache_clear()
                for module in self.modules:
                    sys.modules.pop(module, None)
        said = self.capsys.readouterr()
        return Ended(code, said.out, said.err)

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that finds them."""
        paths = [str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
