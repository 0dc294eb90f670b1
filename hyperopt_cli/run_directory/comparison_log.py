"""The TensorBoard log of a comparison: one TensorBoard run a mode, so that each chart shows them side by side.

    compare/validation_loss compare/wall_s compare/peak_bytes compare/num_gradients compare/num_hvps
    compare/bits_per_parameter compare/difference        all at step 0; the largest difference of any hyperparameter
    compare/against_float32                              the same from float32, where the precision is lower
    hypergradients/<name>                                <name>/<index> for each element, the norm for many
    differences/<name>                                   relative, from the reference

The tables are on the text page, the costs on the hparams page too.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from hyperopt_cli.errors import needing
from hyperopt_cli.run_directory.compared import Compared, Comparison
from hyperopt_cli.run_directory.comparison_rows import (
    MAX_ELEMENTS,
    cost_header,
    cost_rows,
    elements,
    hypergradient_rows,
    notes,
    titled,
)

with needing("a log for TensorBoard"):
    from torch.utils.tensorboard import SummaryWriter


def log_comparison(folder: Path, comparison: Comparison, *, recipe: str) -> None:
    """Write the event files.

    Args:
        folder: where, usually `RunDirectory.tensorboard`.
        comparison: what came out.
        recipe: the recipe's text, shown on the text page.
    """
    with SummaryWriter(folder) as writer:
        writer.add_text("recipe", "".join(f"    {line}\n" for line in recipe.splitlines()), 0)
        writer.add_text("comparison", _markdown(comparison), 0)
    for each in comparison.modes:
        if each.cost is None:
            continue
        with SummaryWriter(folder / mode_folder(titled(each))) as writer:
            if each.status == "biased":
                writer.add_text("bias", str(each.reason), 0)
            scalars = _scalars(each)
            for tag, number in scalars.items():
                writer.add_scalar(tag, number, 0)
            costs = {tag: number for tag, number in scalars.items() if tag.startswith("compare/")}
            writer.add_hparams({"mode": each.mode, "result": each.status}, costs, run_name=".", global_step=0)


def mode_folder(mode: str) -> str:
    """The name of a mode as that of a folder anywhere: `reverse:slots=50` is `reverse-slots=50`."""
    return re.sub(r"[^\w.=-]+", "-", mode)


def _scalars(each: Compared) -> dict[str, float]:
    assert each.cost is not None
    assert each.validation_loss is not None
    cost = {f"compare/{key}": number for key, number in asdict(each.cost).items() if number is not None}
    scalars = {"compare/validation_loss": each.validation_loss, **cost}
    for name, values in (each.hypergradient or {}).items():
        labelled = elements(name, values)
        if len(labelled) > MAX_ELEMENTS:
            scalars[f"hypergradients/{name}/norm"] = math.hypot(*(x for _, x in labelled))
        else:
            scalars |= {f"hypergradients/{_tag(label)}": x for label, x in labelled}
    if each.difference is not None:
        scalars["compare/difference"] = max(each.difference.hypergradient.values())
        scalars |= {f"differences/{name}": x for name, x in each.difference.hypergradient.items()}
    if each.against_float32 is not None:
        scalars["compare/against_float32"] = max(each.against_float32.hypergradient.values())
    return scalars


def _tag(label: str) -> str:
    """`lr[0, 1]` as TensorBoard has it: `lr/0/1`."""
    return label.replace("[", "/").replace(", ", "/").rstrip("]")


def _markdown(comparison: Comparison) -> str:
    header, *rows = hypergradient_rows(comparison)
    tables = [_table(cost_header(comparison), cost_rows(comparison)), _table(header, rows)]
    return "\n\n".join([*tables, "\n".join(f"- {note}" for note in notes(comparison))])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
