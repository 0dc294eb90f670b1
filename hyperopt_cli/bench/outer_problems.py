"""The problems on which methods of the outer loop are compared: shipped recipes, those of `outer_recipes/`, and one
that is written with the library.

Each has an ordinary guess, from which it starts, or two decades below or above it; and a box, two decades to each side
of that guess, in which every method stays. What it has tuned is judged by training runs of other seeds, on the test
split where there is one. To run one alone:

    hyperopt run hyperopt_cli/bench/outer_recipes/tabular.yaml --allow-import 'hyperopt_cli.bench.*'
"""

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hyperopt_cli.data import InMemory, Splits, mnist
from hyperopt_cli.data.seeds import derive, generator
from hyperopt_cli.errors import NonFiniteError
from hyperopt_cli.instantiate import Experiment, build
from hyperopt_cli.modes.plain_run import plain_run
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.outer.terrain import Terrain
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.recipe.load import load
from hyperopt_cli.space import Hyperparameter, Knob, Schedule, Space, Transform

Start = Literal["two decades low", "ordinary", "two decades high"]

FACTORS: dict[Start, float] = {"two decades low": 0.01, "ordinary": 1.0, "two decades high": 100.0}
OWN = ("hyperopt_cli.bench.*",)
RECIPES = Path(__file__).parent / "outer_recipes"


class TuningProblem(ABC):
    """Hyperparameters to tune, from one start, at one seed: of the validation split, the weights and the batches.

    Attributes:
        space: the hyperparameters, from the start, within the box.
        steps: the horizon T.
        has_test: whether there is a test split.
        seed: of the runs by which it is tuned.
    """

    space: Space
    steps: int
    has_test: bool
    seed: int

    @abstractmethod
    def problem(self, seed: int) -> Problem:
        """Returns a training run on this split, with the initial weights and batches of any seed."""

    @abstractmethod
    def test(self, params: Params, seed: int) -> float:
        """Returns the loss on the test split of what a training run of that seed has come to."""

    def held_out(self, num: int) -> list[int]:
        """Returns seeds of training runs that are used for nothing but judging."""
        return [derive(self.seed, "held out", k) for k in range(num)]

    def judged(self, hyper: Hyper, num: int) -> dict[str, list[float] | None]:
        """Returns losses of `num` held-out runs on the validation and the test split, infinite where one diverged."""
        validation, test = list[float](), list[float]()
        for seed in self.held_out(num):
            try:
                run = plain_run(self.problem(seed), hyper)
                ends = float(run.value), self.test(run.params, seed) if self.has_test else math.inf
            except NonFiniteError:
                ends = math.inf, math.inf
            validation.append(ends[0])
            test.append(ends[1])
        return {"held_out": validation, "test": test if self.has_test else None}

    @property
    def box(self) -> str:
        """The box in natural values: of each hyperparameter the lowest and the highest."""
        terrain = Terrain.of(self.space, self.steps, True)
        low, high = (terrain.natural(end) for end in terrain.box())
        ends = {key: torch.cat([low[key].flatten(), high[key].flatten()]) for key in low}
        return ", ".join(f"{key} {float(x.min()):.3g} to {float(x.max()):.3g}" for key, x in ends.items())


class OfRecipe(TuningProblem):
    """A recipe.

    Args:
        experiment: what the recipe describes.
        factor: the start of its learning rates, over the ordinary guess.
    """

    def __init__(self, experiment: Experiment, factor: float) -> None:
        def start(name: str, knob: Knob) -> Knob:
            return replace(knob, initial=(knob.initial * factor).clamp(*knob.transform.range)) if name == "lr" else knob

        self._experiment = experiment
        moved = [replace(each, knob=start(each.name, each.knob)) for each in experiment.space.hyperparameters]
        self.space, self.steps, self.seed = Space(tuple(moved)), experiment.steps, experiment.seed
        self.has_test = experiment.data is not None and experiment.data.test is not None

    def problem(self, seed: int) -> Problem:
        """Returns a training run of the recipe."""
        return self._experiment.problem(seed)

    def test(self, params: Params, seed: int) -> float:
        """Returns the loss on the recipe's test split."""
        figures = self._experiment.test_figures(self._experiment.evaluated(params, seed))
        assert figures is not None
        return figures.loss


class PixelDecay(TuningProblem):
    """A weight decay for each of MNIST's 784 pixels, of a softmax regression on few examples (K = 784).

    E is the cross-entropy on other examples; the training loss has sum_i decay_i |w_i|^2 / 2 beside its own, w_i being
    the weights of pixel i.

    Args:
        root: the folder with MNIST/raw.
        seed: of the split.
        factor: the start over the ordinary guess.
        device: where it runs.
    """

    NUM_TRAIN, NUM_VALIDATION, NUM_TEST, BATCH, RATE = 500, 2000, 5000, 50, 0.1
    GUESS: ClassVar[float] = 1e-2

    def __init__(self, root: Path, seed: int, factor: float, device: torch.device) -> None:
        transform = Transform("log", (self.GUESS / 100, self.GUESS * 100))
        knob = Knob(torch.full((784,), self.GUESS * factor, dtype=torch.float64), transform)
        self.space = Space((Hyperparameter("decay", knob, Schedule()),))
        self._fixed = {"lr": torch.tensor(self.RATE), "momentum": torch.tensor(0.9)}
        self.steps, self.has_test, self.seed, self._device = 100, True, seed, device
        splits = mnist(str(root))
        order = torch.randperm(len(splits.train), generator=generator(seed, "split"))
        self._train = self._examples(splits.train, order[: self.NUM_TRAIN])
        self._validation = self._examples(splits.train, order[self.NUM_TRAIN :][: self.NUM_VALIDATION])
        self._test = self._examples(splits.test, torch.arange(self.NUM_TEST))

    def problem(self, seed: int) -> Problem:
        """Returns a training run by heavy ball."""
        x, y = self._train
        batches = generator(seed, "batches")
        drawn = [torch.randperm(self.NUM_TRAIN, generator=batches) for _ in range(self.steps)]
        index = torch.stack(drawn).to(self._device)
        start = 0.01 * torch.randn(784, 10, generator=generator(seed, "init")).to(self._device)

        def inner_loss(params: Params, hyper: Hyper, batch: Tensor) -> Tensor:
            penalty = (hyper["decay"].to(torch.float32) @ params["w"].square()).sum() / 2
            return cross_entropy(x[batch] @ params["w"], y[batch]) + penalty

        def outer_loss(params: Params, hyper: Hyper) -> Tensor:
            return cross_entropy(self._validation[0] @ params["w"], self._validation[1])

        return Problem(
            init={"w": start},
            inner_loss=inner_loss,  # type: ignore[arg-type]
            outer_loss=outer_loss,
            batch=lambda t: index[t, : self.BATCH],
            optimizer=SGD(),
            steps=self.steps,
            schedule=lambda hyper, t: {**hyper, **self._fixed},
        )

    def test(self, params: Params, seed: int) -> float:
        """Returns the loss on the first examples of MNIST's test split."""
        return float(cross_entropy(self._test[0] @ params["w"], self._test[1]))

    def _examples(self, part: object, index: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(part, InMemory)
        inputs = part.inputs[index].flatten(1).float() / 255
        return inputs.to(self._device), part.targets[index].to(self._device)


class Listed(NamedTuple):
    """A problem by its name.

    Attributes:
        recipe: a shipped one, or one of `outer_recipes/`; None: `PixelDecay`.
        overrides: which make the ordinary guess and the box of a shipped recipe.
        folder: of the data that it reads, below the one that is given; None: it reads none.
        seeds: at most so many.
        trials: of a search.
    """

    recipe: str | None
    overrides: tuple[str, ...] = ()
    folder: str | None = None
    seeds: int = 5
    trials: int = 100


BOX_OF_SGD = (
    "hyperparameters.lr.initial=0.1",
    "hyperparameters.lr.bounds=[0.001, 10]",
    "hyperparameters.momentum.initial=0.9",
)
PROBLEMS: dict[str, Listed] = {
    "quadratic": Listed("quadratic", ("hyperparameters.lr.bounds=[0.001, 10]",)),
    "digits_lr": Listed("digits_lr", (*BOX_OF_SGD, "hyperparameters.weight_decay.bounds=[1.0e-5, 0.1]")),
    "mnist_lr": Listed("mnist_lr", (*BOX_OF_SGD, "hyperparameters.weight_decay.bounds=[5.0e-6, 0.05]"), "."),
    "cifar_lr_cpu": Listed(
        "cifar_lr_cpu", (*BOX_OF_SGD, "hyperparameters.weight_decay.bounds=[5.0e-6, 0.05]"), "cifar10", 2, 40
    ),
    "small_regression": Listed("small_regression.yaml"),
    "tabular": Listed("tabular.yaml"),
    "adamw": Listed("adamw.yaml"),
    "per_layer": Listed("per_layer.yaml"),
    "per_step": Listed("per_step.yaml"),
    "pixel_decay": Listed(None, (), "."),
}


def tuning_problem(
    name: str, seed: int, start: Start, data: Path | None = None, device: torch.device | None = None
) -> TuningProblem:
    """Returns a problem of `PROBLEMS` at one seed, from one start.

    Args:
        name: in `PROBLEMS`.
        seed: of the split, the weights and the batches.
        start: where.
        data: the folder with MNIST/raw and cifar10; None where it is not needed.
        device: where it runs; None: the CPU.
    """
    device = device or torch.device("cpu")
    listed = PROBLEMS[name]
    if listed.recipe is None:
        assert data is not None
        return PixelDecay(data, seed, FACTORS[start], device)
    path = str(RECIPES / listed.recipe) if listed.recipe.endswith(".yaml") else listed.recipe
    overrides = [*listed.overrides, f"seed={seed}", f"device={device}"]
    overrides += [] if listed.folder is None else [f"dataset.root={Path(str(data)) / listed.folder}"]
    return OfRecipe(build(load(path, overrides, OWN), OWN), FACTORS[start])


def friedman(num_train: int = 200, num_test: int = 2000) -> Splits:
    """Draws y = 10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5 + noise, and five numbers that say nothing.

    Friedman 1991, "Multivariate Adaptive Regression Splines", https://doi.org/10.1214/aos/1176347963, section 4.3; y is
    scaled to a variance near 1.

    Args:
        num_train: examples to train and validate on.
        num_test: examples to test on, without noise.
    """
    draws = torch.Generator().manual_seed(0)

    def part(num: int, noise: float) -> InMemory:
        x = torch.rand(num, 10, generator=draws)
        y = 10 * (torch.pi * x[:, 0] * x[:, 1]).sin() + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
        return InMemory(x, ((y + noise * torch.randn(num, generator=draws) - 14) / 5)[:, None])

    return Splits(part(num_train, 1.0), part(num_test, 0.0), (10,), None)


def small_model(width: int = 16) -> nn.Module:
    """Returns the README's own model."""
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))


def small_data() -> Splits:
    """Returns the README's own data, and as many again to test on."""

    def part(seed: int) -> InMemory:
        x = torch.randn(500, 3, generator=torch.Generator().manual_seed(seed))
        return InMemory(x, (x[:, 0] - 2 * x[:, 1] + x[:, 2] ** 2)[:, None])

    return Splits(part(0), part(1), (3,), None)
