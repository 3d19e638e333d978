"""Functions as people give them to a chat as tools, and functions that say too little."""

# ruff: noqa: UP006, UP007, UP035, UP045

from __future__ import annotations

import enum
from typing import Any, Dict, List, Literal, Optional, Tuple, Union


class Unit(enum.Enum):
    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


class Own:
    def method(self, n: int = 3) -> Own:
        """Counts.

        Args:
            n: How often.
        """
        return self


def weather(place: str, unit: Unit, days: Optional[int] = None, exact: bool = False) -> Dict[str, float]:
    """
    Tells the weather of a place.
    It may be wrong.

    Args:
        place (str): The city, such as
            "Paris: France", or
            a village
        unit: Of the temperature

        days: How many: at least one
        exact (bool, *optional*): Whether to
          round: never

    Returns:
        The temperature,
          by hour

    Raises:
        ValueError: nowhere
    """
    return {}


def everything(
    a: list,
    b: List[int],
    c: Tuple[int, str],
    d: dict,
    e: Dict[str, List[float]],
    f: Union[int, str],
    g: Union[int, List[str], None],
    h: Literal["x", 1, None],
    i: Any,
    j: int | float | None,
    k: list | tuple,
    m: tuple,
) -> None:
    """Takes all that there is

    Args:
        a: A
        b: B
        c: C
        d: D (or none)
        e: E
        f: F (choices: [" tea ", 3])
        g: G
        h: H
        i: I
        j: J
        k: K
        m: M
    """


def nothing() -> Own:
    """Does nothing."""
    return Own()


GOOD = (weather, everything, nothing, Own().method)


def no_docstring(a: int) -> None:
    pass


def no_hint(a) -> None:  # type: ignore[no-untyped-def]
    """No hint.

    Args:
        a: A
    """


def not_described(a: int, b: int) -> None:
    """One of two.

    Args:
        a: A
    """


def own_class(a: Own) -> None:
    """A class.

    Args:
        a: A
    """


def any_number(a: Tuple[int, ...]) -> None:
    """Numbers.

    Args:
        a: A
    """


def unknown(a: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
    """A name that there is not.

    Args:
        a: A
    """


def bad_choices(a: str) -> None:
    """Choices that are no JSON.

    Args:
        a: A (choices: [tea])
    """


BAD = (no_docstring, no_hint, not_described, own_class, any_number, unknown, bad_choices)
