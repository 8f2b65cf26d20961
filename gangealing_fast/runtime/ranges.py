# SPDX-License-Identifier: Apache-2.0
"""What numbers an option may be: written beside its type, checked for all options of a command at once.

`steps: Annotated[int, Range(1, 100)]`. The types below are those that options use again and again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from gangealing_fast.runtime.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LARGEST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, both included; `above` leaves `low` itself out. NaN lies in no range."""

    low: float
    high: float
    above: bool = False

    def holds(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        low, high = (str(limit) if isinstance(limit, int) else f"{limit:g}" for limit in (self.low, self.high))
        return f"{'above' if self.above else 'at least'} {low} and at most {high}"


Count = Annotated[int, Range(1, LARGEST)]
Natural = Annotated[int, Range(0, LARGEST)]
Side = Annotated[int, Range(1, 2**15)]
"""Of pictures, in pixels."""
SideOrDefault = Annotated[int, Range(0, 2**15)]
Channels = Annotated[int, Range(1, 2**16)]
Digit = Annotated[int, Range(0, 9)]
Threads = Annotated[int, Range(0, 1024)]
Iterations = Annotated[int, Range(1, 100)]
Share = Annotated[float, Range(0, 1)]
LearningRate = Annotated[float, Range(0, 100)]
Weight = Annotated[float, Range(0, 1e9)]
Positive = Annotated[float, Range(0, 1e9, above=True)]
Factor = Annotated[float, Range(0, 1000, above=True)]


def ranges_in(hint: Any, value: Any) -> Iterator[tuple[Range | None, Any]]:
    """The numbers in `value`, each with the range that its type `hint` gives it, or None without one. Booleans are no numbers."""
    if get_origin(hint) is Annotated:
        inner, *about = get_args(hint)
        found = next((item for item in about if isinstance(item, Range)), None)
        yield from ((found or range_, number) for range_, number in ranges_in(inner, value))
    elif isinstance(value, (tuple, list)):
        kinds = get_args(hint)
        repeated = len(kinds) != len(value) or Ellipsis in kinds
        for index, item in enumerate(value):
            yield from ranges_in((kinds[0] if repeated else kinds[index]) if kinds else None, item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        # Of a union, the part that has a range: `Annotated[int, Range(1, 9)] | None`.
        ranges = [next(ranges_in(part, value))[0] for part in get_args(hint) if get_origin(part) is Annotated]
        yield next((range_ for range_ in ranges if range_ is not None), None), value


def check_ranges(config: DataclassInstance) -> None:
    """Raise UserError for the first option of a command that is out of its range, or NaN."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        for range_, value in ranges_in(hints[field.name], getattr(config, field.name)):
            option = "--" + field.name.replace("_", "-")
            if range_ is not None and not range_.holds(value):
                raise UserError(f"{option} must be {range_}, got {value}")
            if range_ is None and isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{option} must be a finite number, got {value}")
