"""The part of a rank of a run that is not the lead."""

from typing import Any

from hyperopt_cli.commands.agreement import Agreement
from hyperopt_cli.instantiate import Experiment
from hyperopt_cli.modes import Measurements
from hyperopt_cli.outer.descent import descend
from hyperopt_cli.ranks.group import Ranks
from hyperopt_cli.run_directory.signals import StopFlag
from hyperopt_cli.stopping import only_after_steps


def follow(experiment: Experiment, flag: StopFlag, ranks: Ranks) -> None:
    """Takes part in a run as a rank that is not the lead: it measures and steps with the others, and writes nothing.

    Args:
        experiment: the same experiment that the lead has built.
        flag: set by signals.
        ranks: the processes that share the run.

    Raises:
        HyperoptError: the error that the lead raises too.
    """
    ranks.each(lambda: None)  # the lead reads its checkpoint
    of_lead: tuple[Any, dict[str, Any]] = ranks.from_lead((None, {}))
    resume_from, measured = of_lead
    keeper, measurements = Agreement(ranks, flag, None), Measurements()
    measurements.load_state_dict(measured)
    descent = descend(
        experiment.problem,
        experiment.space,
        experiment.descent,
        experiment.mode,
        experiment.seed,
        keeper=keeper,
        resume_from=resume_from,
        measurements=measurements,
        ranks=ranks,
        together=keeper.together,
    )
    with only_after_steps():
        for _ in descent:
            pass
