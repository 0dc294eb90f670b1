"""What a recipe describes, ready to run."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hyperopt_cli.data.batches import Batch, Data
from hyperopt_cli.data.chunks import Chunks
from hyperopt_cli.data.seeds import derive
from hyperopt_cli.dynamics.precision import products_in
from hyperopt_cli.instantiate.accuracy import Counts, accuracy
from hyperopt_cli.instantiate.loss import Loss
from hyperopt_cli.models.batch_norm import estimate_running_statistics
from hyperopt_cli.modes import Mode
from hyperopt_cli.optimizers.base import InnerOptimizer, Params, StepHyper
from hyperopt_cli.outer.descent import Descent
from hyperopt_cli.outer.terrain import Terrain
from hyperopt_cli.problem import Chunked, Hyper, Precision, Problem, uncompiled
from hyperopt_cli.ranks.group import ALONE, Ranks
from hyperopt_cli.space import Space
from hyperopt_cli.stopping import stoppable

NUM_DIGESTED = 64


class TestFigures(NamedTuple):
    """The mean loss on the test split, and the accuracy where there are classes."""

    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Experiment:
    """What a recipe describes, ready to run.

    Attributes:
        space: the hyperparameters.
        mode: how to differentiate.
        descent: how the outer loop walks.
        data: None where the loss needs none.
        optimizer: the inner one.
        steps: the horizon T.
        loss: `(outputs, targets, **hyperparameters) -> Tensor []`.
        loss_names: its arguments that lambda_t may drive.
        make_model: seed -> model, on the device.
        device: where everything runs.
        seed: the recipe's seed.
        precision: the precision of the inner gradient's matrix products; None where it is that of the parameters.
        ranks: the processes that share the work.
        class_dim: the dimension of the outputs that holds the classes, as the model says.
    """

    space: Space
    mode: Mode
    descent: Descent
    data: Data | None
    optimizer: InnerOptimizer
    steps: int
    loss: Loss
    loss_names: frozenset[str]
    make_model: Callable[[int], nn.Module]
    device: torch.device
    seed: int
    precision: Precision | None = None
    ranks: Ranks = ALONE
    class_dim: int = 1

    def first_seed(self, outer_step: int) -> int:
        """Returns the seed of the first training run of an outer step."""
        return self.descent.seeds(self.seed, outer_step)[0]

    def least_price(self) -> float:
        """Returns what the first point of the outer loop costs, in plain training runs.

        Raises:
            MissingPackageError: the method needs a package that is not there.
        """
        method = self.descent.method()
        terrain = Terrain.of(self.space, self.steps, method.in_units, self.optimizer.rates, self.seed)
        (first, *_) = next(method.walk(terrain))
        num = sum(knob.initial.numel() for knob in self.space.tuned().values())
        return self.descent.replicas * (self.mode.price(num, self.steps) if first.gradient else 1.0)

    def seeds(self, num: int) -> list[int]:
        """Returns the recipe's seed and others derived from it, of plain training runs; all share one split."""
        return [self.seed, *(derive(self.seed, "train", k) for k in range(1, num))]

    def problem(self, seed: int) -> Problem:
        """Returns the training run of one seed, which decides its initial weights, its batches and its dropout.

        The outer loss sees the model in evaluation mode, with the batch statistics of each fixed chunk.
        """
        model = self.make_model(derive(seed, "init"))
        evaluated = copy.deepcopy(model).eval()

        def inner_loss(params: Params, hyper: StepHyper, batch: Batch | None) -> Tensor:
            driven = {name: hyper[name] for name in self.loss_names if name in hyper}
            loss = self._loss(model, params, batch, driven)
            return loss + penalty(params, hyper["l2"]) if "l2" in hyper else loss

        def outer_loss(params: Params, hyper: Hyper, batch: Batch | None = None) -> Tensor:
            return self._loss(evaluated, params, batch, {})

        validation: Chunks | Chunked | None = None if self.data is None else self.data.validation
        if self.data is not None and self.ranks.divides("batch"):
            part = self.data.validation.of_rank(self.ranks.rank, self.ranks.size)
            validation = Chunked(part, self.ranks)
        return Problem(
            init=self._init({name: w.detach() for name, w in trained(model).items()}),
            inner_loss=inner_loss,
            outer_loss=outer_loss,
            batch=self._batches(seed),
            optimizer=self.optimizer,
            steps=self.steps,
            schedule=self.space.at,
            outer_batches=validation,
            precision=self.precision,
        )

    def _batches(self, seed: int) -> Callable[[int], Batch | Chunked | None]:
        if self.data is None:
            return lambda t: None
        steps = self.data.steps
        if self.ranks.divides("batch"):
            part = steps.batches_in_chunks(seed, self.ranks.rank, self.ranks.size)
            return lambda t: Chunked(part(t), self.ranks)
        if not steps.in_chunks:
            return steps.batches(seed)
        in_chunks = steps.batches_in_chunks(seed)
        return lambda t: Chunked(in_chunks(t))

    def _loss(self, model: nn.Module, params: Params, batch: Batch | None, driven: Mapping[str, Any]) -> Tensor:
        if batch is None:
            return self.loss_of(functional_call(model, params, ()), None, **driven)
        with seeded(batch.seed, self.device):
            outputs = functional_call(model, params, (batch.inputs,))
        return self.loss_of(outputs, batch.targets, **driven)

    def loss_of(self, outputs: Tensor, targets: Tensor | None, **driven: Any) -> Tensor:
        """Returns the loss of a model's outputs, whose classes are moved to dim 1 if the loss has classes."""
        if self.class_dim != 1 and self.loss.of_classes:
            outputs = outputs.movedim(self.class_dim, 1)
        return self.loss(outputs, targets, **driven)

    def _init(self, start: Params) -> Callable[[Hyper], Params] | Params:
        """Returns w_0; `init_scale`, if the recipe has it, multiplies every weight of two or more dimensions."""
        scale = next((hp for hp in self.space.hyperparameters if hp.name == "init_scale"), None)
        if scale is None:
            return start

        def init(hyper: Hyper) -> Params:
            factor = scale.grouping.spread(scale.value_at(hyper, 0), scale.fixed)
            return {
                name: (factor[name] if isinstance(factor, dict) else factor).to(w) * w if w.ndim > 1 else w
                for name, w in start.items()
            }

        return init

    def data_digest(self) -> str | None:
        """Returns a SHA-256 digest of the first examples of training and validation, as stored; None without data."""
        if self.data is None:
            return None
        digest, steps, validation = hashlib.sha256(), self.data.steps, self.data.validation
        for source, index in ((steps.source, steps.index), (validation.source, validation.indices[0])):
            for part in source.read(index[:NUM_DIGESTED]):
                digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def test(self, params: Params, outer_step: int) -> TestFigures | None:
        """Returns the figures on the test split, with running statistics from training data; None without one.

        Args:
            params: w_T of the first replica.
            outer_step: the outer step of `params`, whose seed made the rest of the model (buffers, frozen parameters).
        """
        if self.data is None or self.data.test is None:
            return None
        return self.test_figures(self.evaluated(params, self.first_seed(outer_step)))

    def evaluated(self, params: Params, seed: int) -> nn.Module:
        """Returns the model of a training run as it is evaluated, with running statistics from training data.

        Args:
            params: w_T.
            seed: of the run, which made the rest of the model (buffers, frozen parameters).
        """
        chunks = () if self.data is None else self.data.train_chunks
        batches = (batch for batch, _ in stoppable(chunks))
        return estimate_running_statistics(self.make_model(derive(seed, "init")), params, batches)

    def test_figures(self, model: nn.Module) -> TestFigures | None:
        """Returns the figures of a model that is evaluated on the test split; None without one."""
        if self.data is None or self.data.test is None:
            return None
        loss, right, num = 0.0, 0, 0
        with products_in(None), torch.no_grad(), uncompiled():
            for batch, weight in stoppable(self.data.test):
                outputs = model(batch.inputs)
                loss += weight * float(self.loss_of(outputs, batch.targets))
                if (counts := self.counts(outputs, batch.targets)) is not None:
                    right, num = right + counts.right, num + counts.num
        return TestFigures(loss, right / num if num else None)

    def validation_accuracy(self, params: Params, seed: int) -> float | None:
        """Returns the accuracy on the validation split, of the outputs of which E takes the loss; None without classes.

        Args:
            params: w_T.
            seed: of the training run, as in `evaluated`.
        """
        if self.data is None or self.data.num_classes is None or not params:
            return None
        model, right, num = self.make_model(derive(seed, "init")).eval(), 0, 0
        with products_in(None), torch.no_grad(), uncompiled():
            for batch, _ in self.data.validation:
                with seeded(batch.seed, self.device):
                    outputs = functional_call(model, params, (batch.inputs,))
                if (counts := self.counts(outputs, batch.targets)) is None:
                    return None
                right, num = right + counts.right, num + counts.num
        return right / num if num else None

    def counts(self, outputs: Tensor, targets: Tensor) -> Counts | None:
        """Returns how many targets a model's outputs meet; None where there are no classes."""
        if self.data is None or self.data.num_classes is None:
            return None
        return accuracy(outputs, targets, self.class_dim, self.loss.ignore_index)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that training moves, which are those that are not frozen."""
    return {name: w for name, w in model.named_parameters() if w.requires_grad}


def penalty(params: Params, l2: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Returns `sum l2 |w|^2 / 2`, whose gradient is `l2 w`; l2 is [], or one such number for each parameter."""
    terms = [(l2[name] if isinstance(l2, Mapping) else l2) * w.square().sum() / 2 for name, w in params.items()]
    return torch.stack(terms).sum()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A context in which random draws are a function of `seed`; those outside of it are not disturbed.

    The generators are seeded one by one: `torch.manual_seed` goes to every device there might be, which takes longer
    than a step of a small network.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
