"""The recipe: every section with its defaults, validated and frozen."""

import warnings
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from pydantic_core.core_schema import ValidationInfo

from hyperopt_cli.errors import RecipeError, RenamedWarning
from hyperopt_cli.recipe.document import dump
from hyperopt_cli.recipe.entries import Hyperparameter
from hyperopt_cli.recipe.fields import Boolean, Integer, Misfit, Number, Positive, Section, Share, Text, is_number
from hyperopt_cli.recipe.limits import MAX_POINTS
from hyperopt_cli.recipe.positions import KeyPath, Positions
from hyperopt_cli.recipe.wording import did_you_mean, shown

Count = Annotated[Integer, Field(ge=1)]
Natural = Annotated[Integer, Field(ge=0)]
LOSSES = ("cross_entropy", "mse", "output")

# mode -> its arguments with their defaults
MODES: dict[str, dict[str, Any]] = {
    "auto": {},
    "forward": {"engine": "auto", "columns_at_once": None, "compile": "auto"},
    "reverse": {"slots": None, "window": None, "path": None, "compile": "auto"},
    "reversible": {"radix": None, "compile": "auto"},
}


# an engine that no run may take
ONLY_MEASURED = "reverse_over_forward"

# how forward mode takes its tangents, beside auto
ENGINES = (
    "folded",
    "forward_over_reverse",
    "forward_over_reverse_loop",
    "reverse_over_reverse",
    "reverse_over_reverse_loop",
    "program",
    "program_loop",
    "dense",
)


class Call(Section):
    """A callable by name; every key that is not a field here is an argument of it."""

    model_config = ConfigDict(extra="allow")

    call: Text

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the callable: every key that is not a field of the section."""
        return dict(self.__pydantic_extra__ or {})


def _batch_size(given: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Refuses a value that fits none of the forms by one message that names them all."""
    if given != "all" and not (isinstance(given, int) and not isinstance(given, bool) and given >= 1):
        close = did_you_mean(given, ("all",)) if isinstance(given, str) else ""
        raise Misfit(f"got {shown(given)}{close}; must be an integer of at least 1, or all")
    return check(given)


class Dataset(Call):
    """A callable that returns the splits, and how batches are drawn from them."""

    batch_size: Annotated[Count | Literal["all"], WrapValidator(_batch_size)] = 128
    chunk_size: Count | None = None
    validation_fraction: Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False)] = 0.1
    stratified: Boolean = False
    outer_batch_size: Annotated[Count | Literal["all"], WrapValidator(_batch_size)] = 1000
    crop: Natural = 0
    flip: Boolean = False
    normalize: Boolean = True
    residence: Literal["auto", "device", "stream"] = "auto"
    workers: Natural = 0


class Loss(Call):
    """The loss: one of `LOSSES`, or a callable; a bare name is short for `{call: name}`."""

    call: Text = "cross_entropy"

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        if isinstance(given, str) and given in LOSSES:
            return {"call": given}
        if not isinstance(given, dict | Loss):
            close = did_you_mean(given, LOSSES) if isinstance(given, str) else ""
            raise Misfit(f"got {shown(given)}{close}; must be one of {', '.join(LOSSES)}, or {{call: NAME, ...}}")
        return given

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"enum": list(LOSSES)}, handler.resolve_ref_schema(handler(core))]}


class Optimizer(Section):
    """The inner optimizer, by `name` or as a `call` of an own one, and its fixed arguments."""

    model_config = ConfigDict(extra="allow")

    name: Literal["sgd", "adam", "adamw", "rmsprop"] | None = None
    call: Text | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.name is None) == (self.call is None):
            given = "neither name nor call" if self.name is None else "both name and call"
            raise Misfit(f"got {given}; give one: name (sgd, adam, adamw, rmsprop) or call (an own optimizer)")
        for key, value in self.arguments.items() if self.name else ():
            if not is_number(value) and not isinstance(value, bool):
                raise Misfit(f"got {shown(value)}; must be a finite number, true or false", key)
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The optimizer's arguments that the recipe fixes."""
        return dict(self.__pydantic_extra__ or {})


class Group(Section):
    """Parameters by glob patterns over their names, or by the words `norms` and `biases`, and what is fixed there."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number]

    parameters: Annotated[tuple[Text, ...], Field(min_length=1)]

    @property
    def fixed(self) -> dict[str, float]:
        """The hyperparameters that are fixed for these parameters."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="after")
    def _check_fixed(self) -> Self:
        if not self.fixed:
            raise Misfit("fixes no hyperparameter; add one, such as weight_decay: 0")
        return self


class Outer(Section):
    """The outer optimizer, which moves the hyperparameters."""

    optimizer: Literal["adam", "sgd", "sign"] = "adam"
    lr: Positive = 0.05
    steps: Natural = 10
    momentum: Share | None = None
    clip_norm: Positive | None = None
    patience: Count | None = None
    on_nonfinite: Literal["backtrack", "stop"] = "backtrack"
    seed: Literal["fixed", "fresh"] = "fixed"
    replicas: Count = 1

    @model_validator(mode="before")
    @classmethod
    def _default_momentum(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("optimizer") == "sgd" and given.get("momentum") is None:
            return given | {"momentum": 0.0}
        return given

    @model_validator(mode="after")
    def _check_momentum(self) -> Self:
        if self.momentum is not None and self.optimizer != "sgd":
            raise Misfit(f"the outer optimizer {self.optimizer} takes no momentum; only sgd does", "momentum")
        return self


class Slots(Section):
    """States that checkpointed reverse keeps, by where they lie; the rarely read ones lie farthest."""

    device: Natural = 0
    host: Natural = 0
    disk: Natural = 0

    @model_validator(mode="after")
    def _check_some(self) -> Self:
        if self.device + self.host + self.disk == 0:
            raise Misfit("got no slot; w_0 needs one: give device, host or disk at least 1")
        return self


def _slots(given: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Refuses a value that fits none of the forms by one message; mistakes inside of a mapping are told there."""
    if isinstance(given, dict | Slots):
        return Slots.model_validate(given)
    number = isinstance(given, int) and not isinstance(given, bool) and given >= 1
    if number or given in ("auto", "all"):
        return check(given)
    close = did_you_mean(given, ("auto", "all")) if isinstance(given, str) else ""
    allowed = "all, auto, an integer of at least 1, or a mapping such as {device: 20, host: 200, disk: 0}"
    raise Misfit(f"got {shown(given)}{close}; must be {allowed}")


def _compile(given: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Refuses a value that fits none of the forms by one message that names them all."""
    if not isinstance(given, bool) and given != "auto":
        raise Misfit(f"got {shown(given)}; must be auto, true or false")
    return check(given)


def _engine(given: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Refuses an unknown engine by a message that lists every name."""
    allowed = ("auto", *ENGINES)
    if given not in allowed:
        close = did_you_mean(given, allowed) if isinstance(given, str) and given != ONLY_MEASURED else ""
        why = ", which bench hvp alone takes" if given == ONLY_MEASURED else ""
        raise Misfit(f"got {shown(given)}{close}{why}; must be one of {', '.join(allowed)}; auto takes a right one")
    return check(given)


def _renamed(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the mode with keys under their present names in place of former ones, and warns of these."""
    if "chunk_size" not in given:
        return given
    rest = {key: value for key, value in given.items() if key != "chunk_size"}
    if given["chunk_size"] is None:
        return rest
    if rest.get("columns_at_once") is not None:
        raise Misfit("it is the former name of columns_at_once; give one of them", "chunk_size")
    warnings.warn("mode.chunk_size is called mode.columns_at_once now; change the recipe", RenamedWarning, stacklevel=2)
    return {**rest, "columns_at_once": given["chunk_size"]}


class Mode(Section):
    """How the hypergradient is computed; a bare name is short for `{name: name}`."""

    name: Literal["auto", "forward", "reverse", "reversible"] = "forward"
    engine: Annotated[Text, WrapValidator(_engine), Field(json_schema_extra={"enum": ["auto", *ENGINES]})] | None = None
    columns_at_once: Count | None = None
    slots: Annotated[Slots | Count | Literal["auto", "all"], WrapValidator(_slots)] | None = None
    window: Count | None = None
    path: Literal["linear"] | None = None
    radix: dict[str, Annotated[Integer, Field(ge=1, le=100)]] | None = None
    compile: Annotated[Boolean | Literal["auto"], WrapValidator(_compile)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        if isinstance(given, str) and given in MODES:
            given = {"name": given}
        if not isinstance(given, dict | Mode):
            close = did_you_mean(given, MODES) if isinstance(given, str) else ""
            raise Misfit(f"got {shown(given)}{close}; must be one of {', '.join(MODES)}, or {{name: NAME, ...}}")
        if isinstance(given, dict):
            given = _renamed(given)
            name = given.get("name", "forward")
            defaults = MODES.get(name, {}) if isinstance(name, str) else {}
            return given | {key: value for key, value in defaults.items() if given.get(key) is None}
        return given

    @model_validator(mode="after")
    def _check_arguments(self) -> Self:
        taken = MODES[self.name]
        for key in type(self).model_fields:
            if key != "name" and key not in taken and getattr(self, key) is not None:
                takers = [name for name, keys in MODES.items() if key in keys]
                raise Misfit(f"the mode {self.name} takes no {key}; only {' and '.join(takers)} does", key)
        if self.path is not None and self.slots is not None:
            raise Misfit("a path stands for the states that slots would keep; give one of path and slots", "path")
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The mode's arguments that are set, without its name."""
        return self.model_dump(exclude={"name"}, exclude_none=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"enum": list(MODES)}, handler.resolve_ref_schema(handler(core))]}


class Recipe(Section):
    """What one run of `hyperopt run` does. Equal recipes say the same, wherever they were read from."""

    model: Call
    loss: Loss = Loss(call="cross_entropy")
    dataset: Dataset | None = Field(default=None, validate_default=True)
    optimizer: Optimizer
    steps: Count
    hyperparameters: dict[str, Hyperparameter]
    groups: tuple[Group, ...] = ()
    outer: Outer = Outer()
    mode: Mode = Mode(engine="auto", compile="auto")
    precision: Literal["float64", "float32", "tf32", "bf16"] = "float32"
    device: Text = "auto"
    seed: Natural = 0
    checkpoint_every_s: Annotated[Number, Field(ge=0)] = 300.0
    shard: Literal["auto", "columns", "batch", "replicas"] = "auto"

    _positions: Positions = PrivateAttr(default_factory=Positions)

    @field_validator("dataset")
    @classmethod
    def _check_dataset(cls, dataset: Dataset | None, info: ValidationInfo) -> Dataset | None:
        loss = info.data.get("loss")
        if dataset is None and loss is not None and loss.call != "output":
            raise Misfit("missing; give {call: NAME, ...} (only with loss: output does a recipe need no data set)")
        return dataset

    @field_validator("hyperparameters")
    @classmethod
    def _check_tuned(cls, entries: dict[str, Hyperparameter], info: ValidationInfo) -> dict[str, Hyperparameter]:
        if not any(entry.anything_tuned for entry in entries.values()):
            raise Misfit("nothing is tuned; give at least one entry an initial, such as lr: {initial: 0.1}")
        steps = info.data.get("steps")
        for name, entry in entries.items():
            num = len(entry.starts)
            if entry.schedule.kind == "per_step" and (steps or 0) > MAX_POINTS:
                message = f"per_step holds {steps} numbers, one a step; at most {MAX_POINTS}: take windows or knots"
                raise Misfit(message, name, "schedule")
            if entry.schedule.kind == "per_step" and steps is not None and num not in (1, steps):
                raise Misfit(f"got {num} numbers; must be {steps}, one for each of the steps", name, "initial")
        return entries

    def attached(self, positions: Positions) -> Self:
        """Returns this recipe with the positions that `locate` answers from."""
        self._positions = positions
        return self

    def locate(self, path: KeyPath) -> str:
        """Returns where `path`, or its nearest parent that was written down, stands: `file:line:column`."""
        return self._positions.locate(path)

    def located(self, error: RecipeError) -> RecipeError:
        """Returns `error` with `where` filled in for the issues that lack it."""
        return self._positions.located(error)

    def to_yaml(self) -> str:
        """Returns the recipe with every default filled in, as YAML that loads to an equal recipe."""
        return dump(self.model_dump())
