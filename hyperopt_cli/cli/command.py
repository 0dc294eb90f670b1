"""The commands as typer makes them, with help in words, and with options of one value given once.

typer 0.29 writes `<str>` behind every argument, `<bool>` behind every flag, and braces round what is required. (Much
earlier ones write TEXT behind an argument, which these changes leave as it is.)
"""

from itertools import pairwise
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from hyperopt_cli.errors import UsageError


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
        """Returns the arguments and options of the command, with their help put in words."""
        return _in_words(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Returns what stands behind the command's name in its usage: `[OPTIONS] RECIPE [KEY=VALUE]...`."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the command line.

        Raises:
            UsageError: an option that takes one value is given several, of which typer would silently take the last.
        """
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            for option in order:
                once = isinstance(option, TyperOption) and not (option.multiple or option.is_flag)
                if once and order.count(option) > 1:
                    name = option.opts[0]
                    # given as `--steps 5` or as `--steps=5`
                    values = [value for argument, value in pairwise(args) if argument == name]
                    values += [argument.partition("=")[2] for argument in args if argument.startswith(f"{name}=")]
                    raise UsageError(f"{name}: got {' and '.join(values)}; it takes one value: leave out all but one")
        return super().parse_args(ctx, args)


class Commands(TyperGroup):
    """The group of all commands, which is `hyperopt` itself."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Returns the options of `hyperopt` itself, with their help put in words."""
        return _in_words(super().get_params(ctx))
