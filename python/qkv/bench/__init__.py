"""The measuring core of the benchmarks: limits of the machine, cases, sides, interleaved rounds, tables.

`qkv bench` runs it against NumPy. The repository's bench/ adds other libraries, whole models and plots.

A suite is one op: cases (sizes), inputs made from a case, and sides, which are ways to compute it. Every side runs in
a process of its own, so that thread pools never meet, and in rounds that alternate between the sides, so that a noisy
moment meets them all. The modules here import nothing of qkv but each other: a process that measures another library
may run under an interpreter that has NumPy and that library only (see worker.py).
"""

from __future__ import annotations

from .core import Case, Measurement, Suite, measure
from .machine import Limits, describe, last_cache, measure_limits
from .sides import Sides

__all__ = ["Case", "Limits", "Measurement", "Sides", "Suite", "describe", "last_cache", "measure", "measure_limits"]
