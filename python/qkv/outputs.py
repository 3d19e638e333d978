"""What a model returns: named fields, used as transformers' outputs are."""

from __future__ import annotations

from typing import Any


class ModelOutput(dict[str, Any]):
    """Fields by name (`out["logits"]`), attribute (`out.logits`) or place (`out[0]`, `out[:2]`).

    A field that is None (it was not asked for, or the model has no such part) can be read as an attribute
    but is no key and has no place, as in transformers.
    """

    def __init__(self, **fields: Any):
        super().__init__((name, value) for name, value in fields.items() if value is not None)
        self.__dict__["_absent"] = frozenset(name for name, value in fields.items() if value is None)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if not name.startswith("_") and name in self._absent:
            return None
        raise AttributeError(f"this output has no field {name!r}; it has {', '.join(self)}")

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (dict(self), self._absent, type(self))

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())


def _restore(fields: dict[str, Any], absent: frozenset[str], kind: type[ModelOutput] = ModelOutput) -> ModelOutput:
    return kind(**fields, **dict.fromkeys(absent))
