"""The kinds of values that a recipe's keys take."""

import math
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
)

from hyperopt_cli.recipe.wording import did_you_mean, shown


class Invalid(ValueError):
    """What is wrong with a value, possibly at a key inside it: `path` is relative to the value."""

    def __init__(self, message: str, *path: str | int) -> None:
        self.path = path
        super().__init__(message)


class Section(BaseModel):
    """A frozen mapping of known keys. A key that is absent by default and was not given is left out of dumps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> Any:
        fields = type(self).model_fields
        return {key: value for key, value in handler(self).items() if value is not None or key not in fields}


def is_number(value: object) -> bool:
    """Tells whether `value` is a number that a float can hold: finite, and no boolean."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _number(value: Any) -> float:
    if not is_number(value):
        raise Invalid(f"got {shown(value)}; must be a finite number")
    return float(value)


def _numbers(value: Any) -> float | tuple[float, ...]:
    if not isinstance(value, list | tuple):
        if not is_number(value):
            raise Invalid(f"got {shown(value)}; must be a finite number, or a list with one for each window or knot")
        return float(value)
    if not value:
        raise Invalid("got an empty list; must be a finite number, or a list with one for each window or knot")
    for index, item in enumerate(value):
        if not is_number(item):
            raise Invalid(f"got {shown(item)}; must be a finite number", index)
    return tuple(float(item) for item in value)


def _bounds(value: Any) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(is_number, value)):
        raise Invalid(f"got {shown(value)}; must be a list of two finite numbers, [low, high]")
    low, high = map(float, value)
    if low >= high:
        raise Invalid(f"got {shown(value)}; the first bound must be smaller than the second")
    return low, high


def one_of(names: Iterable[str]) -> tuple[BeforeValidator, WithJsonSchema]:
    """Returns the metadata by which `Annotated[str, *one_of(names)]` allows these names alone, as a `Literal` does."""
    allowed = list(names)

    def check(given: Any) -> Any:
        if given not in allowed:
            close = did_you_mean(given, allowed) if isinstance(given, str) else ""
            raise Invalid(f"got {shown(given)}{close}; must be one of {', '.join(allowed)}")
        return given

    return BeforeValidator(check), WithJsonSchema({"enum": allowed, "type": "string"})


_NUMBER: dict[str, Any] = {"type": "number"}
_LIST: dict[str, Any] = {"type": "array", "items": _NUMBER}

Number = Annotated[float, BeforeValidator(_number)]
Numbers = Annotated[
    float | tuple[float, ...], PlainValidator(_numbers), WithJsonSchema({"anyOf": [_NUMBER, {**_LIST, "minItems": 1}]})
]
Bounds = Annotated[
    tuple[float, float], BeforeValidator(_bounds), WithJsonSchema({**_LIST, "minItems": 2, "maxItems": 2})
]
Integer = Annotated[int, Field(strict=True)]
Count = Annotated[Integer, Field(ge=1)]
Natural = Annotated[Integer, Field(ge=0)]
Boolean = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True, min_length=1)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)]
