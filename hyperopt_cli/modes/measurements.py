"""What hypergradients of a training run have measured, so that the next ones need not.

A mode is a setting and remembers nothing. Whoever takes many hypergradients passes one `Measurements` to all of them:
the engine is chosen once, a step is compiled once, and steps that were found right are not all examined again.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from hyperopt_cli.checks.engine_judge import EngineJudge
from hyperopt_cli.checks.judge import Judge
from hyperopt_cli.checks.verdict import Circumstances, Verdict
from hyperopt_cli.program import Compilation, CompiledStep, PartitionedStep


class Chosen(NamedTuple):
    """The mode that a plan has chosen.

    Attributes:
        settings: of the mode, as `Mode.state_dict` gives them.
        name: what the plan calls it.
        why: the reason, one line.
    """

    settings: dict[str, Any]
    name: str
    why: str


@dataclass
class Measurements:
    """What was measured; an argument of `hypergradient`.

    Attributes:
        verdicts: the engine that `auto` has chosen, by what the choice holds for.
        compilations: whether a step is compiled, by its name and what that holds for.
        slots: how many states fit into the memory, by the size of the problem.
        plans: the mode that `auto` has chosen, by the size of the problem.
        steps: compiled steps, by their names.
        not_compiled: why the integer arithmetic of reversible mode is not compiled, where that was tried.
        judges: what was found right at which steps by the modes with a backward sweep, by the mode's name.
        engine_judges: likewise of forward mode, by the engine that was set, or "auto".
        losses: the code of those whose steps were evaluated in two orders.
    """

    verdicts: dict[Circumstances, Verdict] = field(default_factory=dict)
    compilations: dict[tuple[str, Circumstances], Compilation] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    plans: dict[str, Chosen] = field(default_factory=dict)
    steps: dict[str, Any] = field(default_factory=dict, repr=False)
    not_compiled: list[str] = field(default_factory=list, repr=False)
    judges: dict[str, Judge] = field(default_factory=dict, repr=False)
    engine_judges: dict[str, EngineJudge] = field(default_factory=dict, repr=False)
    losses: set[Any] = field(default_factory=set, repr=False)

    def judge(self, mode: str) -> Judge:
        """Returns the judge of a mode with a backward sweep, by the mode's name."""
        return self.judges.setdefault(mode, Judge())

    def engine_judge(self, engine: str) -> EngineJudge:
        """Returns the judge of forward mode with that engine, or "auto"."""
        return self.engine_judges.setdefault(engine, EngineJudge(engine))

    def compiled_step(self, name: str) -> CompiledStep:
        """Returns the step of forward mode with that name, with what was compiled for it before."""
        step: CompiledStep = self.steps.setdefault(name, CompiledStep(linear=2))
        return step

    def partitioned_step(self, name: str) -> PartitionedStep:
        """Returns the step with that name that has a forward and a backward part."""
        step: PartitionedStep = self.steps.setdefault(name, PartitionedStep())
        return step

    def state_dict(self) -> dict[str, Any]:
        """Returns what was decided, in dictionaries, lists, text and numbers; a resumed run decides nothing again."""
        return {
            "verdicts": [verdict.state_dict() for verdict in self.verdicts.values()],
            "compilations": [
                {"step": name, "made_for": asdict(made_for), **asdict(compilation)}
                for (name, made_for), compilation in self.compilations.items()
            ],
            "slots": dict(self.slots),
            "plans": {size: chosen._asdict() for size, chosen in self.plans.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Adds what `state_dict` returned.

        Raises:
            KeyError, TypeError: it is of another version.
        """
        verdicts = [Verdict.from_state_dict(each) for each in state["verdicts"]]
        compilations = {
            (each["step"], Circumstances(**each["made_for"])): Compilation(each["compiled"], each["why"])
            for each in state["compilations"]
        }
        plans = {size: Chosen(**chosen) for size, chosen in state["plans"].items()}
        self.slots |= state["slots"]
        self.verdicts |= {verdict.made_for: verdict for verdict in verdicts}
        self.compilations |= compilations
        self.plans |= plans
