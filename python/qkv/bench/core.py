"""What is measured and how: cases, suites, interleaved rounds, ratios of pairs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .machine import Limits
    from .sides import Sides

DIGEST_TOLERANCE = 1e-3  # sides whose results differ by more did not compute the same thing


@dataclass(frozen=True)
class Case:
    """One size of an op.

    params: what the suite's `inputs` takes, plain values that JSON can carry. flops: arithmetic operations, two per
    multiply-add; nbytes: bytes read once and written once; what does not bound the op is 0. limit: the field of
    `Limits` that bounds it, or None. tolerance: how far apart the sides' mean magnitudes may be, relatively; of sides
    that give back token ids, what share of them may differ before it is told.

    tokens: how many a call makes or reads, where these are what a user counts: speeds are then given in them. phases:
    instead of `limit`, parts of a call that follow one another, each as limits and the work that they bound.
    """

    name: str
    params: dict[str, Any]
    flops: float = 0
    nbytes: float = 0
    limit: str | None = None
    tolerance: float = DIGEST_TOLERANCE
    tokens: float = 0
    phases: tuple[Mapping[str, float], ...] = ()

    @property
    def work(self) -> float:
        """What `rate` counts per second: operations if there are any, else bytes."""
        return self.flops or self.nbytes

    @property
    def unit(self) -> str:
        return "tok/s" if self.tokens else "GFLOP/s" if self.flops else "GB/s" if self.nbytes else ""

    @property
    def amount(self) -> float:
        """What a call does, in the unit's numerator."""
        return self.tokens or self.work / 1e9

    @property
    def bounds(self) -> tuple[Mapping[str, float], ...]:
        """`phases`, or one of `limit` alone."""
        return self.phases or (({self.limit: self.work},) if self.limit else ())

    def least_seconds(self, limits: Limits) -> float | None:
        """What the machine needs at least: of a phase's bounds the slowest counts. None: nothing measured bounds it."""
        speeds = [{name: float(getattr(limits, name)) for name in phase} for phase in self.bounds]
        if not speeds or not all(speed for of_phase in speeds for speed in of_phase.values()):
            return None
        return sum(
            max(work / of_phase[name] for name, work in phase.items())
            for phase, of_phase in zip(self.bounds, speeds, strict=True)
        )


@dataclass(frozen=True)
class Suite:
    """An op with its cases and sides.

    inputs: params -> the arguments of the sides. sides: name -> function that takes the inputs, prepares what a user
    would prepare once (packed weights, a session) and returns a function without arguments: the work to time.
    module: the name under which a worker process imports the module whose SUITES holds this suite.
    """

    name: str
    module: str
    cases: Callable[[], list[Case]]
    inputs: Callable[..., dict[str, Any]]
    sides: Mapping[str, Callable[..., Callable[[], Any]]]

    def extended(
        self,
        module: str,
        sides: Mapping[str, Callable[..., Callable[[], Any]]],
        cases: Callable[[], list[Case]] | None = None,
    ) -> Suite:
        """The same op with more sides, and with other cases."""
        return Suite(self.name, module, cases or self.cases, self.inputs, {**self.sides, **sides})


@dataclass
class Measurement:
    """Seconds of each side for one case.

    rounds: side -> (least, median) of each round; errors: side -> why it has none. near: limits measured right before
    and after, for cases that memory bounds, whose speed changes with the neighbours'. tokens: side -> the ids that it
    gave back, where the result is ids.
    """

    suite: str
    case: Case
    rounds: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    digests: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, list[list[int]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    near: Limits | None = None

    def least(self, side: str) -> float:
        return min(least for least, _ in self.rounds[side])

    def median(self, side: str) -> float:
        return statistics.median(median for _, median in self.rounds[side])

    def rate(self, side: str) -> float:
        """Work per second at the least time."""
        return self.case.work / self.least(side)

    def speed(self, side: str) -> float:
        """In the case's unit, at the least time."""
        return self.case.amount / self.least(side)

    def share(self, side: str, limits: Limits) -> float | None:
        """Of the limit that bounds the case."""
        least = self.case.least_seconds(self.near or limits)
        return None if least is None else least / self.least(side)

    def agreement(self) -> dict[str, float]:
        """Side -> the share of its tokens up to the first of each row that is not the first side's."""
        if not self.tokens:
            return {}
        first, *others = self.tokens
        expected = self.tokens[first]
        found = {}
        for side in others:
            rows = [
                sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(row, known, strict=True)))
                for row, known in zip(self.tokens[side], expected, strict=True)
            ]
            found[side] = sum(rows) / max(1, sum(map(len, expected)))
        return found

    def notes(self) -> list[str]:
        """What a reader should know about the times: why a side has none, or that it did something else."""
        return [f"{side}: {why}" for side, why in self.errors.items()] + [
            f"{side}: {share:.0%} of its tokens come before the first in a row that is not {next(iter(self.tokens))}'s"
            for side, share in self.agreement().items()
            if 1 - share > self.case.tolerance
        ]

    def ratios(self, side: str, to: str = "qkv") -> list[float]:
        """How many times longer `side` took than `to`: the ratio of the medians of each round."""
        return [a[1] / b[1] for a, b in zip(self.rounds[side], self.rounds[to], strict=True)]

    def as_dict(self, limits: Limits, to: str = "qkv") -> dict[str, Any]:
        sides = {
            side: {
                "min_s": self.least(side),
                "median_s": self.median(side),
                "rate": self.rate(side) if self.case.work else None,
                "tokens_per_s": self.speed(side) if self.case.tokens else None,
                "share_of_limit": self.share(side, limits),
                "rounds_s": self.rounds[side],
            }
            for side in self.rounds
        }
        ratios = {}
        if to in self.rounds:
            for side in self.rounds:
                if side != to:
                    pairs = self.ratios(side, to)
                    ratios[side] = {"min": min(pairs), "median": statistics.median(pairs)}
        return {
            "suite": self.suite,
            "case": self.case.name,
            "params": self.case.params,
            "flops": self.case.flops,
            "bytes": self.case.nbytes,
            "unit": self.case.unit,
            "limit": self.case.limit,
            "phases": [dict(phase) for phase in self.case.phases],
            "limits_near": self.near and self.near.as_dict(),
            "sides": sides,
            f"ratio_to_{to}": ratios,
            "agreement": self.agreement(),
            "errors": self.errors,
        }


def measure(
    suite: Suite,
    case: Case,
    sides: Sides,
    *,
    rounds: int = 5,
    seconds: float = 0.05,
    names: Sequence[str] | None = None,
) -> Measurement:
    """Measure one case: every side warms up, then `rounds` times each in turn for about `seconds`.

    names: sides to measure, default all that the suite has. A side that cannot run the case, or whose result differs
    from the first side's, gets an error instead of times.
    """
    result = Measurement(suite.name, case)
    for side in names or [side for side in sides.names if side in suite.sides]:
        reply = sides.prepare(side, suite, case)
        if "error" in reply:
            result.errors[side] = reply["error"]
            continue
        if "tokens" in reply:
            made = reply["tokens"]
            counts = [len(row) for row in made]
            if result.tokens:
                first, expected_rows = next(iter(result.tokens.items()))
                expected_counts = [len(row) for row in expected_rows]
                if counts != expected_counts:
                    result.errors[side] = f"makes {counts} tokens, not {expected_counts} as {first}"
                    continue
            result.tokens[side] = made
        digest = float(reply["digest"])
        if result.digests and side not in result.tokens:
            first, expected = next(iter(result.digests.items()))
            if not abs(digest - expected) <= case.tolerance * max(abs(expected), 1e-30):
                result.errors[side] = (
                    f"computes something else than {first}: mean magnitude {digest:.6g}, not {expected:.6g}"
                )
                continue
        result.digests[side] = digest
        result.rounds[side] = []
    for _ in range(rounds):
        for side in list(result.rounds):
            reply = sides.round(side, seconds)
            if "error" in reply:
                result.errors[side] = reply["error"]
                del result.rounds[side]
            else:
                result.rounds[side].append((reply["min"], reply["median"]))
    return result
