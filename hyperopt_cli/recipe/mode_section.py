"""The section `mode` of a recipe: a name, and the settings of that mode.

The settings are the fields of the mode's dataclass, read from its source (`registry.settings`), so that a mode is
added without a line here. `FORMS` has those whose values are bounded more closely than their annotation says. Two modes
that have a setting of one name mean the same by it.
"""

import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from hyperopt_cli.errors import RenamedWarning
from hyperopt_cli.recipe.fields import (
    Boolean,
    Count,
    Integer,
    Invalid,
    Natural,
    Number,
    Section,
    Text,
    one_of,
)
from hyperopt_cli.recipe.wording import did_you_mean, shown
from hyperopt_cli.registry import ENGINES, MODES, settings

# mode -> its settings with their defaults
SETTINGS = {name: settings(entry.path) for name, entry in MODES.items()}


class Slots(Section):
    """States that checkpointed reverse keeps, by where they lie; the rarely read ones lie farthest."""

    device: Natural = 0
    host: Natural = 0
    disk: Natural = 0

    @model_validator(mode="after")
    def _check_some(self) -> Self:
        if self.device + self.host + self.disk == 0:
            raise Invalid("got no slot; w_0 needs one: give device, host or disk at least 1")
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
    raise Invalid(f"got {shown(given)}{close}; must be {allowed}")


def _compile(given: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Refuses a value that fits none of the forms by one message that names them all."""
    if not isinstance(given, bool) and given != "auto":
        raise Invalid(f"got {shown(given)}; must be auto, true or false")
    return check(given)


def _engine(given: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Refuses an unknown engine by a message that lists every name."""
    if given not in _ENGINES:
        measured = [name for name in ENGINES if name not in _ENGINES]
        close = did_you_mean(given, _ENGINES) if isinstance(given, str) and given not in measured else ""
        why = ", which bench hvp alone takes" if given in measured else ""
        raise Invalid(f"got {shown(given)}{close}{why}; must be one of {', '.join(_ENGINES)}; auto takes a right one")
    return check(given)


_ENGINES: list[Any] = ["auto", *(name for name, entry in ENGINES.items() if entry.taken != "by bench hvp")]
FORMS: dict[str, Any] = {
    "engine": Annotated[Text, WrapValidator(_engine), Field(json_schema_extra={"enum": _ENGINES})],
    "columns_at_once": Count,
    "slots": Annotated[Slots | Count | Literal["auto", "all"], WrapValidator(_slots)],
    "window": Count,
    "path": Literal["linear"],
    "radix": dict[str, Annotated[Integer, Field(ge=1, le=100)]],
    "compile": Annotated[Boolean | Literal["auto"], WrapValidator(_compile)],
}
_WORDS = {"bool": Boolean, "int": Integer, "float": Number, "str": Text, "Mapping": Mapping, "Literal": Literal}


def _form(annotation: str) -> Any:
    """Returns what a setting may be, by the annotation of the mode's field.

    One with other words than `_WORDS` is not checked here: the mode's `__post_init__` does that, by a ValueError.
    """
    try:
        return eval(annotation, {"__builtins__": {}}, _WORDS)  # written in a file of this package
    except (NameError, TypeError):
        return Any


def _renamed(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the mode with keys under their present names in place of former ones, and warns of these."""
    if "chunk_size" not in given:
        return given
    rest = {key: value for key, value in given.items() if key != "chunk_size"}
    if given["chunk_size"] is None:
        return rest
    if rest.get("columns_at_once") is not None:
        raise Invalid("it is the former name of columns_at_once; give one of them", "chunk_size")
    warnings.warn("mode.chunk_size is called mode.columns_at_once now; change the recipe", RenamedWarning, stacklevel=2)
    return {**rest, "columns_at_once": given["chunk_size"]}


_FIELDS: dict[str, Any] = {"name": (Annotated[str, *one_of(MODES)], "auto")} | {
    key: (FORMS.get(key, _form(setting.annotation)) | None, None)
    for taken in SETTINGS.values()
    for key, setting in taken.items()
}
_Settings: Any = create_model("_Settings", __base__=Section, **_FIELDS)


class Mode(_Settings):  # type: ignore[misc]
    """How the hypergradient is computed; a bare name is short for `{name: name}`."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        if isinstance(given, str) and given in MODES:
            given = {"name": given}
        if not isinstance(given, dict | Mode):
            close = did_you_mean(given, MODES) if isinstance(given, str) else ""
            raise Invalid(f"got {shown(given)}{close}; must be one of {', '.join(MODES)}, or {{name: NAME, ...}}")
        if isinstance(given, dict):
            given = _renamed(given)
            name = given.get("name", "auto")
            taken = SETTINGS.get(name, {}) if isinstance(name, str) else {}
            return given | {key: setting.default for key, setting in taken.items() if given.get(key) is None}
        return given

    @model_validator(mode="after")
    def _check_arguments(self) -> Self:
        for key in self.arguments:
            if key not in SETTINGS[self.name]:
                takers = [name for name, keys in SETTINGS.items() if key in keys]
                raise Invalid(f"the mode {self.name} takes no {key}; only {' and '.join(takers)} does", key)
        if self.name == "reverse" and self.path is not None and self.slots is not None:
            raise Invalid("a path stands for the states that slots would keep; give one of path and slots", "path")
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The mode's arguments that are set, without its name."""
        given: dict[str, Any] = self.model_dump(exclude={"name"}, exclude_none=True)
        return given

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"enum": list(MODES)}, handler.resolve_ref_schema(handler(core))]}
