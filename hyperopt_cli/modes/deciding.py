"""A mode that decides something by measuring: what it decided can be read, and given to another that need not measure.

Whoever runs the mode keeps the verdicts; a mode knows of no file.
"""

from abc import abstractmethod
from collections.abc import Iterable

from hyperopt_cli.modes.base import Mode
from hyperopt_cli.modes.engines.verdict import Verdict


class Deciding(Mode):
    """A mode that chooses its engine."""

    @property
    @abstractmethod
    def verdicts(self) -> tuple[Verdict, ...]:
        """What it has decided so far, the first first."""

    @abstractmethod
    def remember(self, verdicts: Iterable[Verdict]) -> None:
        """Takes over verdicts; one that fits a problem is used in place of measuring."""
