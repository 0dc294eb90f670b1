"""How long a hypergradient takes over R ranks, from costs that were measured on a few.

    columns     T (step + ceil(K / R) column) + rest + 2 sum(8 K) + asked
    batch       T (step + ceil(B / R) example + sum((K + 1) (P + 1) numbers)) + rest + sum(P + K + 1 numbers) + asked

    sum(n)      2 (R - 1) latency + 2 (R - 1) / R n / bandwidth        n bytes, the same sum on every rank
    asked       (3 + min(T, seconds of all steps / EVERY_S)) sum(40)   five numbers, four times a second, and where
                                                                       all meet: at the start, at s_T and at the end

over T steps, K columns, batches of B examples and P parameters. `step` is what a step takes whatever is divided: with
columns the gradient and the update of the state, with batches also that of the K tangents. `column` and `example` are
what it takes for each further one, so both follow from steps of two sizes. `rest` is what a hypergradient takes beside
its steps: the check of the engine at step 0, the validation loss and its gradient.

The sum goes around a ring, in 2 (R - 1) messages that a rank sends and waits for: the least that it can have to send
(Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
https://doi.org/10.1016/j.jpdc.2008.09.002).

All ranks are taken to be equally quick, and to wait for nothing else.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from hyperopt_cli.commands.agreement import EVERY_S
from hyperopt_cli.ranks.group import Shard

NUM_ASKED, MEETINGS = 5, 3  # numbers in a message of the agreement; messages that come in any case
FLOAT64 = 8  # bytes: a number of the agreement, or of the hypergradient


class Link(NamedTuple):
    """What connects the ranks.

    Attributes:
        latency_s: of a message.
        bytes_per_s: that a rank sends.
    """

    latency_s: float
    bytes_per_s: float

    @classmethod
    def of(cls, ranks: int, few_s: float, many_bytes: float, many_s: float) -> "Link":
        """From a sum of a few numbers, which is all latency, and one of so many bytes.

        Where that takes no longer, it is all latency too.

        >>> Link.of(2, 0.002, 1e9, 1.002)
        Link(latency_s=0.001, bytes_per_s=1000000000.0)
        """
        sent_bytes, sent_s = 2 * (ranks - 1) / ranks * many_bytes, many_s - few_s
        return cls(few_s / (2 * (ranks - 1)), sent_bytes / sent_s if sent_s > 0 else math.inf)

    def sum_s(self, num_bytes: float, ranks: int) -> float:
        """Seconds until every rank has the sum.

        >>> Link(0.001, 1e9).sum_s(1e9, 4)
        1.506
        """
        return 2 * (ranks - 1) * (self.latency_s + num_bytes / ranks / self.bytes_per_s)


class Costs(NamedTuple):
    """What a rank takes by itself.

    Attributes:
        step_s: of a step, whatever is divided.
        share_s: of a step, for each column or example.
        rest_s: beside the steps.
    """

    step_s: float
    share_s: float
    rest_s: float

    @classmethod
    def of(cls, sizes: tuple[int, int], seconds: tuple[float, float], rest_s: float) -> "Costs":
        """From steps of two sizes, columns or examples.

        >>> Costs.of((1, 5), (0.75, 2.75), 1.0)
        Costs(step_s=0.25, share_s=0.5, rest_s=1.0)
        """
        share_s = max(0.0, (seconds[1] - seconds[0]) / (sizes[1] - sizes[0]))
        return cls(max(0.0, seconds[0] - sizes[0] * share_s), share_s, rest_s)


@dataclass(frozen=True)
class Work:
    """One hypergradient of forward mode.

    Attributes:
        shard: what is divided, columns or batch.
        steps: T.
        columns: K.
        batch: B.
        parameters: P.
        number_bytes: of one of them.
    """

    shard: Shard
    steps: int
    columns: int
    batch: int
    parameters: int
    number_bytes: int = 4

    @property
    def size(self) -> int:
        """How many there are of what is divided."""
        return self.columns if self.shard == "columns" else self.batch

    @property
    def summed_bytes(self) -> int:
        """What ranks that divide batches add up at each step: loss and gradient, with K tangents of both."""
        return (self.columns + 1) * (self.parameters + 1) * self.number_bytes


class Predicted(NamedTuple):
    """Seconds of one hypergradient, and how many of them go into messages."""

    seconds: float
    messages_s: float


def predicted(work: Work, ranks: int, costs: Costs, link: Link) -> Predicted:
    """The equations above.

    Args:
        work: what is to be done.
        ranks: how many do it, at most `work.size`.
        costs: of each.
        link: between them.
    """
    assert 1 <= ranks <= work.size
    steps_s = work.steps * (costs.step_s + math.ceil(work.size / ranks) * costs.share_s)
    if work.shard == "columns":
        sums_s = 2 * link.sum_s(FLOAT64 * work.columns, ranks)
    else:
        outer_bytes = work.number_bytes * (work.parameters + 1) + FLOAT64 * work.columns
        sums_s = work.steps * link.sum_s(work.summed_bytes, ranks) + link.sum_s(outer_bytes, ranks)
    asked = MEETINGS + min(work.steps, (steps_s + sums_s) / EVERY_S)
    messages_s = sums_s + asked * link.sum_s(FLOAT64 * NUM_ASKED, ranks)
    return Predicted(steps_s + costs.rest_s + messages_s, messages_s)
