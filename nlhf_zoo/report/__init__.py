"""One self-contained page out of plain data: curves with their claimed bounds, win rates, samples, tables."""

from nlhf_zoo.intervals import wilson_interval
from nlhf_zoo.report.page import Report

__all__ = ["Report", "wilson_interval"]
