"""What a benchmark is asked for, and what it reports: the content of its JSON file, its tables and its picture.

Names of figures carry their unit: `_s` seconds, `_bytes` bytes.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperopt_cli.bench.measuring import Ratio, Refused, Samples, Timing
from hyperopt_cli.comparison import relative_difference
from hyperopt_cli.ranks.group import Shard

Figure = float | int | str | bool | Ratio | None


@dataclass(frozen=True)
class Settings:
    """What a benchmark is to measure: how much, of what, and where.

    Args:
        repeat: rounds, at least 1.
        steps: the horizon T; None: the benchmark's own.
        device: where to compute.
        on_progress: told what is being measured.
        models: names of networks; None: the benchmark's own.
        columns: numbers of tangents K; None: the benchmark's own.
        engines: names of engines; None: all.
        batch: inputs in a batch; None: each network's own.
        data: a folder with MNIST/raw; None: random data.
        ranks: numbers of processes that share a hypergradient; None: the benchmark's own.
        shard: what they divide.
        threads: of each process that a benchmark starts; None: one.
        bytes_per_s: that a rank sends where ranks are more than can be measured; None: messages are as measured.
        latency_s: of its messages; None: likewise.
        problems: names of problems to tune; None: all.
        methods: of the outer loop; None: auto and the searches.
        trials: of a search; None: the problem's own.
        record: a file of what was measured, which is read and added to; None: nothing is kept.

    Raises:
        ValueError: a number is below 1, or `columns` or `ranks` is empty.
    """

    repeat: int = 5
    steps: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    on_progress: Callable[[str], None] = field(default=lambda message: None)
    models: tuple[str, ...] | None = None
    columns: tuple[int, ...] | None = None
    engines: tuple[str, ...] | None = None
    batch: int | None = None
    data: Path | None = None
    ranks: tuple[int, ...] | None = None
    shard: Shard = "columns"
    threads: int | None = None
    bytes_per_s: float | None = None
    latency_s: float | None = None
    problems: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    trials: int | None = None
    record: Path | None = None

    def __post_init__(self) -> None:
        if self.repeat < 1:
            raise ValueError(f"repeat: got {self.repeat}; at least 1 round is measured")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps: got {self.steps}; the horizon is at least 1")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch: got {self.batch}; a batch has at least 1 input")
        for name, numbers in {"columns": self.columns, "ranks": self.ranks}.items():
            if numbers is not None and not (numbers and min(numbers) >= 1):
                raise ValueError(f"{name}: got {numbers}; at least one number of at least 1")


@dataclass(frozen=True)
class Variant:
    """One way to do what a case does.

    Attributes:
        name: what it is.
        timing: None where it is not available.
        over_reference: its time over that of the case's reference; None without either, and for the reference.
        reason: why it is not available; None where it is.
        figures: what else was measured, by name.
        split_s: seconds of the whole by what they go into; empty where that was not measured.
    """

    name: str
    timing: Timing | None
    over_reference: Ratio | None = None
    reason: str | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)
    split_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """The same computation in several variants.

    Attributes:
        title: which computation.
        reference: the variant that the others are compared with.
        variants: in the order of a round; the pieces of one are among those of the one that has most.
    """

    title: str
    reference: str
    variants: tuple[Variant, ...]

    @property
    def ran(self) -> tuple[Variant, ...]:
        """The variants that could be measured here."""
        return tuple(variant for variant in self.variants if variant.timing is not None)

    @property
    def pieces(self) -> tuple[str, ...]:
        """The pieces that time goes into, in the order of the variant with the most; empty where none were measured."""
        splits = [tuple(variant.split_s) for variant in self.ran]
        return max(splits, key=len, default=())


@dataclass(frozen=True)
class Table:
    """Figures without a time: rows that share their keys."""

    title: str
    rows: tuple[Mapping[str, Figure], ...]


@dataclass(frozen=True)
class Curves:
    """A figure of several variants over a size that was varied.

    Attributes:
        title: which figure, of what.
        over: the size's name.
        at: its values.
        lines: by variant, the figure at each of them; None where it is not available.
    """

    title: str
    over: str
    at: tuple[int, ...]
    lines: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Report:
    """What a benchmark has measured.

    Attributes:
        benchmark: its name.
        machine: see `machine.py`.
        settings: rounds, horizon, sizes.
        cases: what was timed.
        tables: what was counted.
        curves: what the cases say together; drawn in their place where there are any.
    """

    benchmark: str
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    cases: tuple[Case, ...]
    tables: tuple[Table, ...] = ()
    curves: tuple[Curves, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the report as dictionaries, lists, numbers and strings."""
        return asdict(self)


def compared(
    title: str,
    samples: Mapping[str, Samples | Refused],
    reference: str,
    figures: Callable[[str, Samples], Mapping[str, Figure]],
    split_s: Mapping[str, Mapping[str, float]] | None = None,
) -> Case:
    """Makes a case of what `measuring.interleaved` returned.

    Args:
        title: what the case computes.
        samples: what was measured, by variant.
        reference: the variant to compare with.
        figures: returns further figures of a variant that ran, from its name and samples.
        split_s: seconds by piece, by variant; None where they were not measured.
    """

    def variant(name: str, shown: Samples | Refused) -> Variant:
        if isinstance(shown, Refused):
            return Variant(name, None, reason=shown.reason)
        over = None
        if name != reference and not isinstance(base, Refused):
            over = Ratio.of(shown.timing.rounds_s, base.timing.rounds_s)
        return Variant(name, shown.timing, over, None, figures(name, shown), (split_s or {}).get(name, {}))

    base = samples[reference]
    return Case(title, reference, tuple(variant(name, shown) for name, shown in samples.items()))


def largest_difference(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """Returns the largest relative difference of a hyperparameter's derivative from the reference's.

    It stands beside the times, so that a wrong number that is fast is seen.
    """
    return max(relative_difference(x, reference[name]) for name, x in found.items())
