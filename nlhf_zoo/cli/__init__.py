"""The command line, `nlhf-zoo`: one module a verb."""

from nlhf_zoo.cli.main import main

__all__ = ["main"]
