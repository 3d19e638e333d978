"""Reading a model's config.json: typed, with defaults, refusing what the code does not implement by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# transformers' names -> the activations that ops.linear fuses. The four tanh forms agree to 2.4e-7.
ACTIVATIONS: dict[str, str] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
MAX_SIZE = 2**31 - 1  # no width, count or vocabulary of a real model is beyond it
MAX_LAYERS = 4096  # every layer costs objects before a single tensor is compared


def plain(value: Any, where: str) -> Any:
    """A value made in Python as JSON's own types, so that it can be saved: NumPy's numbers become Python's,
    tuples lists, and integers that are keys strings. ValueError, naming the place: JSON cannot hold it."""
    if isinstance(value, (np.bool_, np.integer)):
        return value.item()
    if isinstance(value, np.floating):
        return float(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item, where) for item in value]
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is a {type(value).__name__}, which JSON cannot hold")
    result = {}
    for key, item in value.items():
        if not isinstance(key, (str, int, np.integer)):
            raise ValueError(f"{where} has the key {key!r:.99}, which JSON cannot hold")
        name = key if isinstance(key, str) else str(int(key))
        result[name] = plain(item, f"{where}: {name}")
    return result


class Config(Mapping[str, Any]):
    """A config.json: a mapping with the file's own keys, `config.hidden_size` for `config["hidden_size"]`,
    and readers that check. A key that is absent or null takes the default. A wrong value is a ValueError
    that names it."""

    def __init__(self, values: Mapping[str, Any], where: str = "config.json"):
        self._values = dict(values)
        self._where = where

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self._values:
            return self._values[name]
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def __repr__(self) -> str:
        return f"Config({self._values!r})"

    def to_dict(self) -> dict[str, Any]:
        return dict(self._values)

    def replaced(self, values: Mapping[str, Any]) -> Config:
        """The same with other values."""
        return Config({**self._values, **values}, self._where)

    def with_defaults(self, defaults: Mapping[str, Any]) -> Config:
        """The same with values for those keys that are absent or null."""
        return self.replaced({name: value for name, value in defaults.items() if self._values.get(name) is None})

    def own_names(self, aliases: Mapping[str, str]) -> Config:
        """The same with a family's own names for values that stand under the names of other families, which win where
        both are there, as in transformers. aliases: other name -> own."""
        given = {own: self._values[other] for other, own in aliases.items() if self._values.get(other) is not None}
        return self.replaced(given)

    def reading(self, defaults: Mapping[str, Any]) -> Config:
        """Nothing but the keys of `defaults`, which has a class's values for those that are absent; null stays null."""
        return Config({name: self._values.get(name, value) for name, value in defaults.items()}, self._where)

    def error(self, name: str, expected: str) -> ValueError:
        return ValueError(f"{self._where}: {name} must be {expected}; got {self._values.get(name)!r:.200}")

    def integer(self, name: str, default: int, low: int = 1, high: int = MAX_SIZE) -> int:
        value = self._values.get(name)
        if value is None:
            return default
        if type(value) is not int or not low <= value <= high:  # bool is an int, and no size
            raise self.error(name, f"an integer from {low} to {high}")
        return value

    def number(self, name: str, default: float, low: float = 0.0) -> float:
        value = self._values.get(name)
        if value is None:
            return default
        try:
            number = float(value) if type(value) in (int, float) else math.nan
        except OverflowError:  # an integer may have any number of digits
            number = math.inf
        if not math.isfinite(number) or number < low:
            raise self.error(name, f"a finite number not below {low:g}")
        return number

    def flag(self, name: str, default: bool) -> bool:
        value = self._values.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.error(name, "true or false")
        return value

    def activation(self, name: str, default: str) -> str:
        """The name that ops.linear knows for the activation that the config asks for."""
        value = self._values.get(name)
        if value is None:
            value = default
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.error(name, "one of " + ", ".join(sorted(ACTIVATIONS)))
        return ACTIVATIONS[value]

    def only(self, name: str, supported: Any) -> None:
        """Refuse every value of an option that would change the numbers, except the one that is
        implemented."""
        value = self._values.get(name)
        if value is not None and value != supported:
            raise ValueError(f"{self._where}: {name} {value!r:.200} is not supported; only {supported!r} is")

    def num_labels(self, default: int = 2) -> int:
        """How many outputs a classification head has: transformers counts id2label."""
        labels = self._values.get("id2label")
        if labels is None:
            return self.integer("num_labels", default)
        if not isinstance(labels, dict) or not labels:
            raise self.error("id2label", "an object with at least one label")
        return len(labels)
