"""The sections under `hyperparameters`: an entry, and the schedule that stretches it over the inner steps."""

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from hyperopt_cli.recipe.fields import Bounds, Integer, Invalid, Number, Numbers, Positive, Section, is_number
from hyperopt_cli.recipe.limits import MAX_POINTS
from hyperopt_cli.recipe.wording import did_you_mean, shown


class Entry(Section):
    """A number, tuned from `initial` or fixed at `value`; a bare number is short for `{initial: number}`."""

    initial: Numbers | None = None
    value: Number | None = None
    transform: Literal["log", "logit", "softplus", "identity"] | None = None
    bounds: Bounds | None = None
    step: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, given: Any) -> Any:
        if is_number(given):
            return {"initial": given}
        if not isinstance(given, dict | Entry):
            raise Invalid(f"got {shown(given)}; must be a finite number, or a mapping such as {{initial: 0.1}}")
        return given

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if (self.initial is None) == (self.value is None):
            given = "neither initial nor value" if self.initial is None else "both initial and value"
            raise Invalid(f"got {given}; give one: initial (where tuning starts) or value (fixed)")
        for start in self.starts if self.bounds else ():
            low, high = self.bounds or (start, start)
            if not low <= start <= high:
                key = "value" if self.initial is None else "initial"
                raise Invalid(f"got {start:g}; must lie within bounds, [{low:g}, {high:g}]", key)
        return self

    @property
    def tuned(self) -> bool:
        """Whether this number is tuned, or else fixed."""
        return self.initial is not None

    @property
    def starts(self) -> tuple[float, ...]:
        """The numbers given as `initial` or `value`."""
        start = self.value if self.initial is None else self.initial
        return start if isinstance(start, tuple) else (float(start or 0.0),)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "number"}, handler.resolve_ref_schema(handler(core))]}


class Parameter(Entry):
    """A parameter of a schedule's shape, such as the share of steps spent warming up: one number."""

    @model_validator(mode="after")
    def _check_scalar(self) -> Self:
        if isinstance(self.initial, tuple):
            raise Invalid("got a list; a schedule's parameter is one number", "initial")
        return self


class _Shape(Section):
    """What a schedule has beside its kind; what is left out is fixed at the number that `defaults` has for it."""

    defaults: ClassVar[dict[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return given | {name: number for name, number in cls.defaults.items() if given.get(name) is None}

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {name: value for name, value in self if isinstance(value, Parameter)}


class Constant(_Shape):
    """Is the same at every step."""


class PerStep(_Shape):
    """Has one number for every step."""


class WarmupCosine(_Shape):
    """Warms up linearly, then follows half a cosine down to `final`."""

    defaults: ClassVar[dict[str, Any]] = {"warmup": {"value": 0.1}, "final": {"value": 0.01}}

    warmup: Parameter | None = None
    final: Parameter | None = None


class WarmupLinear(_Shape):
    """Warms up linearly, then follows a line down to `final`."""

    defaults: ClassVar[dict[str, Any]] = WarmupCosine.defaults

    warmup: Parameter | None = None
    final: Parameter | None = None


class OneCycle(_Shape):
    """Goes up from `initial`, then down to `final`."""

    defaults: ClassVar[dict[str, Any]] = {
        "warmup": {"value": 0.3},
        "initial": {"value": 0.04},
        "final": {"value": 0.01},
    }

    warmup: Parameter | None = None
    initial: Parameter | None = None
    final: Parameter | None = None


class Exponential(_Shape):
    """Decays geometrically to `final`, a share of the first value."""

    defaults: ClassVar[dict[str, Any]] = {"final": {"value": 0.1}}

    final: Parameter | None = None


def _ascending(milestones: tuple[float, ...]) -> tuple[float, ...]:
    if not milestones:
        raise Invalid("got an empty list; must be a list of shares of the horizon, such as [0.5, 0.75]")
    for index, (before, after) in enumerate(pairwise(milestones)):
        if before >= after:
            raise Invalid(f"got {after:g} after {before:g}; milestones must ascend", index + 1)
    return milestones


Milestone = Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False)]
Milestones = Annotated[tuple[Milestone, ...], AfterValidator(_ascending)]


class StepDecay(_Shape):
    """Multiplied by `factor` at each milestone, a share of the horizon."""

    defaults: ClassVar[dict[str, Any]] = {"milestones": [0.5, 0.75], "factor": {"value": 0.1}}

    milestones: Milestones | None = None
    factor: Parameter | None = None


BARE = ("constant", "per_step", "warmup_cosine", "warmup_linear", "one_cycle", "exponential", "step_decay")
COUNTED = ("windows", "knots")


class Schedule(Section):
    """How an entry varies over the inner steps; exactly one key is set, and a bare name is short for `{name: {}}`."""

    constant: Constant | None = None
    windows: Annotated[Integer, Field(ge=1, le=MAX_POINTS)] | None = None
    knots: Annotated[Integer, Field(ge=2, le=MAX_POINTS)] | None = None
    per_step: PerStep | None = None
    warmup_cosine: WarmupCosine | None = None
    warmup_linear: WarmupLinear | None = None
    one_cycle: OneCycle | None = None
    exponential: Exponential | None = None
    step_decay: StepDecay | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        if isinstance(given, str) and given in COUNTED:
            raise Invalid(f"got {given} without a number; write {{{given}: 7}}")
        if isinstance(given, str) and given in BARE:
            return {given: {}}
        if not isinstance(given, dict | Schedule):
            close = did_you_mean(given, BARE) if isinstance(given, str) else ""
            raise Invalid(f"got {shown(given)}{close}; must be {', '.join(BARE)}, {{windows: 7}} or {{knots: 7}}")
        if isinstance(given, dict) and len(given) == 1:
            return {key: {} if value is None and key in BARE else value for key, value in given.items()}
        return given

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            kinds = ", ".join(type(self).model_fields)
            raise Invalid(f"got {' and '.join(given) or 'no kind'}; give exactly one of {kinds}")
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> Any:
        given = {name: value for name, value in handler(self).items() if value is not None}
        return given if given.get(self.kind) else self.kind

    @property
    def kind(self) -> str:
        """The key that is set, which names the kind of schedule."""
        return next(name for name, value in self if value is not None)

    @property
    def count(self) -> int | None:
        """The number of windows or knots; None for the other kinds."""
        return self.knots if self.windows is None else self.windows

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters of the shape, by name."""
        shape = getattr(self, self.kind)
        return shape.parameters if isinstance(shape, _Shape) else {}

    @property
    def milestones(self) -> tuple[float, ...]:
        """The milestones of `step_decay` as shares of the horizon; empty for other kinds."""
        return (self.step_decay.milestones or ()) if self.step_decay else ()

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        mapping = handler.resolve_ref_schema(handler(core)) | {"minProperties": 1, "maxProperties": 1}
        return {"anyOf": [{"enum": list(BARE)}, mapping]}


class Hyperparameter(Entry):
    """A hyperparameter: where it starts, its transform, how it varies over the steps and over the parameters."""

    schedule: Schedule = Schedule(constant=Constant())
    per: Literal["model", "layer", "tensor"] = "model"

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if not isinstance(self.initial, tuple):
            return self
        kind, count = self.schedule.kind, self.schedule.count
        if count is None and kind != "per_step":
            raise Invalid(f"got a list; the schedule {kind} starts from one number", "initial")
        if count is not None and len(self.initial) != count:
            raise Invalid(f"got {len(self.initial)} numbers; must be {count}, one for each of the {kind}", "initial")
        return self

    @property
    def anything_tuned(self) -> bool:
        """Whether tuning moves this number or a parameter of its schedule."""
        return self.tuned or any(parameter.tuned for parameter in self.schedule.parameters.values())
