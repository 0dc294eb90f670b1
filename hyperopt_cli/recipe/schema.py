"""The recipe: every section with its defaults, validated and frozen."""

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

from hyperopt_cli.errors import RecipeError
from hyperopt_cli.recipe.document import dump
from hyperopt_cli.recipe.entries import Hyperparameter
from hyperopt_cli.recipe.fields import (
    Boolean,
    Count,
    Invalid,
    Natural,
    Number,
    Positive,
    Section,
    Share,
    Text,
    is_number,
    one_of,
)
from hyperopt_cli.recipe.limits import MAX_POINTS
from hyperopt_cli.recipe.mode_section import Mode
from hyperopt_cli.recipe.positions import KeyPath, Positions
from hyperopt_cli.recipe.wording import did_you_mean, shown
from hyperopt_cli.registry import LOSSES, OPTIMIZERS, OUTER


class Call(Section):
    """A callable by name; every key that is not a field here is an argument of it."""

    model_config = ConfigDict(extra="allow")

    call: Text

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the callable: every key that is not a field of the section."""
        return dict(self.__pydantic_extra__ or {})


class Model(Call):
    """A callable that returns the model, and where its initial weights come from."""

    state_dict: Text | None = None


def _batch_size(given: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Refuses a value that fits none of the forms by one message that names them all."""
    if given != "all" and not (isinstance(given, int) and not isinstance(given, bool) and given >= 1):
        close = did_you_mean(given, ("all",)) if isinstance(given, str) else ""
        raise Invalid(f"got {shown(given)}{close}; must be an integer of at least 1, or all")
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
            raise Invalid(f"got {shown(given)}{close}; must be one of {', '.join(LOSSES)}, or {{call: NAME, ...}}")
        return given

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"enum": list(LOSSES)}, handler.resolve_ref_schema(handler(core))]}


class Optimizer(Section):
    """The inner optimizer, by `name` or as a `call` of an own one, and its fixed arguments."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, *one_of(OPTIMIZERS)] | None = None
    call: Text | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.name is None) == (self.call is None):
            given = "neither name nor call" if self.name is None else "both name and call"
            raise Invalid(f"got {given}; give one: name ({', '.join(OPTIMIZERS)}) or call (an own optimizer)")
        for key, value in self.arguments.items() if self.name else ():
            if not is_number(value) and not isinstance(value, bool):
                raise Invalid(f"got {shown(value)}; must be a finite number, true or false", key)
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
            raise Invalid("fixes no hyperparameter; add one, such as weight_decay: 0")
        return self


class Outer(Section):
    """The outer loop: the method that moves the hyperparameters, how long, and over which seeds."""

    optimizer: Annotated[str, *one_of(OUTER)] = "auto"
    lr: Positive | None = None
    steps: Natural = 10
    budget: Positive | None = None
    momentum: Share | None = None
    grow: Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)] | None = None
    clip_norm: Positive | None = None
    patience: Count | None = None
    on_nonfinite: Literal["backtrack", "stop"] | None = None
    seed: Literal["fixed", "fresh"] = "fixed"
    replicas: Count = 1
    trials: Count | None = None
    tied: Boolean | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        name = given.get("optimizer", "auto")
        defaults = OUTER[name].settings if isinstance(name, str) and name in OUTER else {}
        return given | {key: value for key, value in defaults.items() if given.get(key) is None}

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        method = OUTER[self.optimizer]
        for key in dict.fromkeys(key for each in OUTER.values() for key in each.settings):
            if getattr(self, key) is not None and key not in method.settings:
                takers = [name for name, each in OUTER.items() if key in each.settings]
                does = f"only {takers[0]} does" if len(takers) == 1 else f"{', '.join(takers)} do"
                raise Invalid(f"the outer optimizer {self.optimizer} takes no {key}; {does}", key)
        if self.seed == "fresh" and method.compares:
            others = ", ".join(name for name, each in OUTER.items() if not each.compares)
            raise Invalid(
                f"got fresh; the outer optimizer {self.optimizer} compares runs of the same seeds: take replicas, or "
                f"{others}",
                "seed",
            )
        return self


class Recipe(Section):
    """What one run of `hyperopt run` does. Equal recipes say the same, wherever they were read from."""

    model: Model
    loss: Loss = Loss(call="cross_entropy")
    dataset: Dataset | None = Field(default=None, validate_default=True)
    optimizer: Optimizer
    steps: Count
    hyperparameters: dict[str, Hyperparameter]
    groups: tuple[Group, ...] = ()
    outer: Outer = Outer()
    mode: Mode = Mode(name="auto")
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
        without = [name for name, entry in LOSSES.items() if not entry.needs_data]
        if dataset is None and loss is not None and loss.call not in without:
            needs_none = f"only with loss: {' or '.join(without)} does a recipe need no data set"
            raise Invalid(f"missing; give {{call: NAME, ...}} ({needs_none})")
        return dataset

    @field_validator("hyperparameters")
    @classmethod
    def _check_tuned(cls, entries: dict[str, Hyperparameter], info: ValidationInfo) -> dict[str, Hyperparameter]:
        if not any(entry.anything_tuned for entry in entries.values()):
            raise Invalid("nothing is tuned; give at least one entry an initial, such as lr: {initial: 0.1}")
        steps = info.data.get("steps")
        for name, entry in entries.items():
            num = len(entry.starts)
            if entry.schedule.kind == "per_step" and (steps or 0) > MAX_POINTS:
                message = f"per_step holds {steps} numbers, one a step; at most {MAX_POINTS}: take windows or knots"
                raise Invalid(message, name, "schedule")
            if entry.schedule.kind == "per_step" and steps is not None and num not in (1, steps):
                raise Invalid(f"got {num} numbers; must be {steps}, one for each of the steps", name, "initial")
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
