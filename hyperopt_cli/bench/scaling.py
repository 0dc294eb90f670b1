"""How long a hypergradient takes over R ranks, from what one rank and a few of them took.

    seconds(R)    rest + ceil(N / R) share + messages(R)      N columns, or examples of a batch

`share` and `rest` follow from the seconds of one rank, which has N shares, and of the most ranks that were measured.
What each of them computes alike (with columns the training run itself) is in `rest`, and so are the messages between
those that were measured. More of them, elsewhere, send besides, where it is said what connects them,

    columns       2 sum(8 K bytes)                            the derivatives, at the end
    batch         T sum((K + 1) (P + 1) numbers)              loss and gradient with K tangents of both, at each step
    sum(n)        2 (R - 1) (latency + n / R / bandwidth)     around a ring, the same sum on every rank

over T steps and P parameters: the least that a rank can have to send (Patarasuk and Yuan 2009, "Bandwidth optimal
all-reduce algorithms for clusters of workstations", https://doi.org/10.1016/j.jpdc.2008.09.002).

All ranks are taken to be equally quick, and to wait for nothing else.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hyperopt_cli.ranks.group import Shard

FLOAT64 = 8  # bytes of a derivative


class Link(NamedTuple):
    """How quickly the ranks can send to each other.

    Attributes:
        latency_s: seconds that a message takes, however short.
        bytes_per_s: bytes that a rank sends in a second.
    """

    latency_s: float
    bytes_per_s: float

    def sum_s(self, num_bytes: float, ranks: int) -> float:
        """Returns the seconds until every rank has the sum.

        >>> Link(0.001, 1e9).sum_s(1e9, 4)
        1.506
        """
        return 2 * (ranks - 1) * (self.latency_s + num_bytes / ranks / self.bytes_per_s)


@dataclass(frozen=True)
class Work:
    """One hypergradient of forward mode.

    Attributes:
        shard: what is divided among the ranks, columns or batch.
        steps: the horizon T.
        columns: tangent columns, K.
        batch: examples of a batch, B.
        parameters: parameters of the model, P.
        number_bytes: bytes of one parameter.
    """

    shard: Shard
    steps: int
    columns: int
    batch: int
    parameters: int
    number_bytes: int = 4

    @property
    def size(self) -> int:
        """How many columns or examples there are to divide: N."""
        return self.columns if self.shard == "columns" else self.batch

    def messages_s(self, ranks: int, link: Link) -> float:
        """Returns the seconds that messages among `ranks` ranks take over the whole run."""
        if self.shard == "columns":
            return 2 * link.sum_s(FLOAT64 * self.columns, ranks)
        return self.steps * link.sum_s((self.columns + 1) * (self.parameters + 1) * self.number_bytes, ranks)


def predicted_s(work: Work, ranks: int, measured_s: Mapping[int, float], link: Link | None = None) -> float:
    """Returns the seconds of a hypergradient over `ranks` ranks, by the equations above.

    Args:
        work: what is to be done.
        ranks: how many do it, at most `work.size`.
        measured_s: seconds by number of ranks, for 1 and at least one more.
        link: what connects more of them than were measured; None: as between these.

    >>> work = Work("columns", steps=10, columns=16, batch=128, parameters=1000)
    >>> predicted_s(work, 4, {1: 18.0, 2: 10.0})  # rest 2 s, and 1 s for each of 4 columns
    6.0
    """
    most = max(measured_s)
    assert 1 <= ranks <= work.size
    share_s = max(0.0, (measured_s[1] - measured_s[most]) / (work.size - math.ceil(work.size / most)))
    rest_s = measured_s[1] - work.size * share_s
    messages_s = 0.0 if link is None or ranks <= most else work.messages_s(ranks, link)
    return rest_s + math.ceil(work.size / ranks) * share_s + messages_s
