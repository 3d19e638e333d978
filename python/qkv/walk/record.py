"""What a pass through a model computes, recorded where it happens: the ops as the layers call them.

Layers and models call `ops.linear`, `ops.attention_varlen` and so on as attributes of the module. While a Recorder is
entered these are functions that note their arguments and results, so that nothing in a model knows of it, and what is
noted is what the kernels read and wrote. Calls of other threads go straight through.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from .. import ops
from ..layers import Array, Block, Run, Stack
from .steps import fits

OPS = (
    *("embedding", "linear", "matmul", "layer_norm", "rms_norm", "angles", "rotate", "scaled_sum", "divided", "tanh"),
    *("attention", "attention_varlen", "log_softmax"),
)
_ONE_AT_A_TIME = threading.RLock()  # who puts functions into ops, and takes them out again


@dataclass(frozen=True)
class Call:
    """Of an op. given: all its arguments by name."""

    op: str
    given: dict[str, Any]
    result: Any


@dataclass(frozen=True)
class Layer:
    """Stands before the calls of one block of a stack. inputs, result: (total, C). told: whether the calls follow."""

    stack: str
    number: int
    block: Block
    run: Run
    inputs: Array
    result: Array
    told: bool


class Recorder:
    """The calls of the thread that has entered it, and where the layers begin, in order. layers: numbers of those whose
    calls are kept."""

    def __init__(self, layers: Collection[int]):
        self.layers = layers
        self.events: list[Call | Layer] = []
        self.keeps = True
        self.nbytes = 0  # of the results in events

    def __enter__(self) -> Recorder:
        _ONE_AT_A_TIME.acquire()
        self.thread = threading.get_ident()
        self.originals = {name: getattr(ops, name) for name in OPS}
        for name, function in self.originals.items():
            setattr(ops, name, self._recording(name, function))
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self.originals.items():
            setattr(ops, name, function)
        _ONE_AT_A_TIME.release()

    def _recording(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if self.keeps and threading.get_ident() == self.thread:
                bound = signature.bind(*args, **kwargs)
                bound.apply_defaults()
                # Transformer-XL's head adds to log-probabilities in place
                kept = result.copy() if name == "log_softmax" else result
                self.events.append(Call(name, dict(bound.arguments), kept))
                self.nbytes += _nbytes(kept)
                fits(self.nbytes, "the results of its kernels")
            return result

        return call

    def watched(self, stack: Stack, name: str) -> Stack:
        """The same stack; its blocks tell when they begin."""
        watched = Stack([], stack.final_norm, shrunk=stack.shrunk)
        watched.blocks = [_Watched(self, name, i, block) for i, block in enumerate(stack.blocks)]
        return watched

    def watched_model(self, model: Any) -> Any:
        """A model of the same parts with watched stacks; the given one stays as it is."""
        watched = object.__new__(type(model))
        watched.__dict__.update(model.__dict__)
        if hasattr(model, "stack"):
            watched.stack = self.watched(model.stack, "")
        else:
            for side in ("encoder", "decoder"):
                setattr(
                    watched, side, replace(getattr(model, side), stack=self.watched(getattr(model, side).stack, side))
                )
        return watched


def _nbytes(result: Any) -> int:
    """Of an op's result: an array, or several."""
    if isinstance(result, (tuple, list)):
        return sum(map(_nbytes, result))
    return 0 if result is None else int(result.nbytes)


class _Watched(Block):
    def __init__(self, recorder: Recorder, stack: str, number: int, block: Block):
        super().__init__(*block.sublayers)
        self.recorder, self.stack, self.number, self.block = recorder, stack, number, block

    def __call__(self, x: Array, run: Run) -> Array:
        recorder = self.recorder
        recorder.keeps = self.number in recorder.layers
        at = len(recorder.events)
        y = self.block(x, run)
        layer = Layer(self.stack, self.number, self.block, run, x, y, recorder.keeps)
        recorder.events.insert(at, layer)
        recorder.keeps = True
        return y
