"""The commands as typer makes them, with help in words.

typer 0.29 writes `<str>` behind every argument, `<bool>` behind every flag, and braces round what is required; earlier
ones write none of these.
"""

from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption


def _in_words(params: list[Any]) -> list[Any]:
    for param in params:
        if isinstance(param, TyperArgument):
            param.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
        elif isinstance(param, TyperOption) and param.is_flag:
            param.metavar = ""
    return params


class Command(TyperCommand):
    """A command, such as `hyperopt run`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The arguments and options."""
        return _in_words(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What stands behind the command's name in its usage: `[OPTIONS] RECIPE [KEY=VALUE]...`."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class Commands(TyperGroup):
    """`hyperopt` itself."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The options."""
        return _in_words(super().get_params(ctx))
