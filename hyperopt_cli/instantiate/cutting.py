"""Is the loss of a whole what the pieces give that it is cut into? Tried on examples of the run, before it begins.

The validation loss is cut by `outer_batch_size`, a training batch by `chunk_size` and among ranks. What is computed is

    sum_i c_i L(f(x_i), y_i)      for      L(f(x), y)

which is the same where L is a mean or a sum over examples, or carries weights of its own (`data/shares.py`), and f
takes each example for itself. Where L is the root of a mean, a correlation or a ratio of sums it is another loss. Batch
normalisation, and what is drawn, belong to the piece by definition: of these f is freed first.
"""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hyperopt_cli.data.chunks import Preparation, Source
from hyperopt_cli.data.partition import even
from hyperopt_cli.data.seeds import derive, generator
from hyperopt_cli.data.shares import Shares
from hyperopt_cli.data.splits import is_integral
from hyperopt_cli.dynamics.precision import products_in
from hyperopt_cli.errors import Issue
from hyperopt_cli.instantiate.experiment import Experiment, seeded
from hyperopt_cli.instantiate.models import attempted
from hyperopt_cli.problem import uncompiled

NUM_TRIED = 64
AGREES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 1e-2}  # relative


class Cut(NamedTuple):
    """One way in which a run cuts a loss.

    Attributes:
        key: the recipe's key that asks for it.
        remedy: what to do where it can't be.
        source: where the examples come from.
        examples: the indices of those that are cut.
        prepare: makes batches of them.
        shares: what each piece counts.
        size: the most examples of a piece.
        driven: the arguments of the loss that are tuned, at their starts.
        targets: of the whole data set, where they are at hand: examples of each class are tried.
    """

    key: tuple[str, ...]
    remedy: str
    source: Source
    examples: Tensor
    prepare: Preparation
    shares: Shares
    size: int
    driven: Mapping[str, Tensor]
    targets: Tensor | None


def cut_wrongly(experiment: Experiment, driven: Mapping[str, Tensor]) -> Issue | None:
    """Returns what is wrong with the cuts of a run; None if there are none, or their pieces add up.

    Args:
        experiment: the run, with its data.
        driven: the arguments of the training loss that are tuned, at their starts.
    """
    model = None
    for cut in _cuts(experiment, driven):
        model = model or _alone(experiment.make_model(derive(experiment.seed, "init")))
        if len(cut.examples) > 1 and (what := _difference(experiment, model, cut)) is not None:
            return Issue(
                cut.key,
                f"the loss is cut into pieces that do not add up to it: {what}. {cut.remedy}, or write the loss as a "
                "mean over examples, each for itself",
            )
    return None


def _cuts(experiment: Experiment, driven: Mapping[str, Tensor]) -> Iterator[Cut]:
    data = experiment.data
    assert data is not None
    steps = data.steps
    targets = data.targets.get("training")
    of_batch = steps.source, steps.index, steps.prepare, steps.shares
    if steps.chunk_size is not None and steps.in_chunks:
        remedy = "Leave dataset.chunk_size out"
        yield Cut(("dataset", "chunk_size"), remedy, *of_batch, steps.chunk_size, driven, targets)
    elif experiment.ranks.divides("batch"):
        yield Cut(("shard",), "Use shard: columns or replicas", *of_batch, steps.batch_size, driven, targets)
    for split, known in ((data.validation, targets), (data.test, data.targets.get("test"))):
        if split is not None and len(split.indices) > 1:
            size, index = len(split.indices[0]), torch.cat(list(split.indices))
            key, remedy = ("dataset", "outer_batch_size"), "Set dataset.outer_batch_size: all"
            yield Cut(key, remedy, split.source, index, split.prepare, split.shares, size, {}, known)


def _difference(experiment: Experiment, model: nn.Module, cut: Cut) -> str | None:
    """Returns in words how far the pieces are from the whole; None if they agree."""
    index = _tried(cut, generator(experiment.seed, "cut"))
    batch = cut.prepare(cut.source.read(index), 0)
    # pieces of unlike targets: the more of one class is in one of them, the farther is a loss that weighs classes
    order = batch.targets.reshape(len(index), -1).double().mean(dim=1).argsort().cpu()
    index, inputs, targets = index[order], batch.inputs[order], batch.targets[order]

    def outputs_of(x: Tensor, seed: int = 0) -> Tensor:
        with torch.no_grad(), uncompiled(), products_in(None), seeded(seed, experiment.device):
            made: Tensor = model(x)
        return made

    parts = even(torch.arange(len(index)), min(cut.size, NUM_TRIED // 2))
    outputs = torch.cat([outputs_of(inputs[part]) for part in parts])
    first = torch.cat(parts[:2])
    at_once, in_pieces = outputs_of(inputs[first]), outputs[first]
    if at_once.shape == in_pieces.shape:
        difference = _norm(in_pieces - at_once) / (_norm(at_once) or 1.0)
        # what another seed changes is drawn for each piece, which is no mixing
        if difference > AGREES[at_once.dtype] and torch.equal(at_once, outputs_of(inputs[first], 1)):
            return (
                f"the model's outputs of an example depend on the others of its piece (they differ by {difference:.1g})"
            )
    return _adding_up(experiment, outputs, targets, index, cut)


def _tried(cut: Cut, rng: torch.Generator) -> Tensor:
    """Returns the examples to try: some at random, and one of each class or the extremes, which may weigh most."""
    drawn = cut.examples[torch.randperm(len(cut.examples), generator=rng)]
    chosen = drawn[:NUM_TRIED].tolist()
    if cut.targets is not None and is_integral(cut.targets):
        targets = cut.targets.cpu()[drawn].reshape(len(drawn), -1)
        for label in torch.unique(targets)[:NUM_TRIED]:
            chosen.append(int(drawn[(targets == label).any(dim=1).nonzero()[0, 0]]))
    elif cut.targets is not None:
        for column in cut.targets.cpu()[cut.examples].reshape(len(cut.examples), -1).T[:NUM_TRIED]:
            chosen += [int(cut.examples[column.argmin()]), int(cut.examples[column.argmax()])]
    return torch.tensor(sorted(set(chosen)))


def _adding_up(experiment: Experiment, outputs: Tensor, targets: Tensor, index: Tensor, cut: Cut) -> str | None:
    """Returns in words how value or gradient of the loss differ from those of its pieces; None if they don't."""
    exact = replace(experiment, loss=experiment.loss.to(experiment.device, torch.float64))
    doubled = targets.double() if targets.is_floating_point() else targets
    found, failure = attempted(lambda: _both(exact, outputs.double(), doubled, index, cut))
    if failure:
        found, failure = attempted(lambda: _both(experiment, outputs, targets, index, cut))
    if failure:
        _, at_once = attempted(lambda: experiment.loss_of(outputs, targets, **cut.driven))
        return None if at_once else f"of a piece it raised {failure}"
    whole, pieces, dtype = found
    for what, at_once, terms in zip(("value", "gradient"), whole, pieces, strict=True):
        size = max(_norm(at_once), *(_norm(term) for term in terms))
        if size == 0 or not math.isfinite(size):
            continue  # what is not finite is told by its step
        difference = _norm(sum(terms, -at_once)) / size
        if difference > AGREES[dtype]:
            return f"the {what} of {len(outputs)} examples at once and of two pieces differ by {difference:.1g} of it"
    return None


def _both(
    experiment: Experiment, outputs: Tensor, targets: Tensor, index: Tensor, cut: Cut
) -> tuple[tuple[Tensor, Tensor], list[list[Tensor]], torch.dtype]:
    """Returns value and gradient of the whole, the terms of each from the pieces, and the dtype that they round in."""

    def taken(rows: Tensor) -> tuple[Tensor, Tensor]:
        x = outputs.detach().requires_grad_()
        with torch.enable_grad(), uncompiled():
            loss = experiment.loss_of(x[rows], targets[rows], **cut.driven)
            return loss.detach(), torch.autograd.grad(loss, x)[0]

    every = torch.arange(len(outputs))
    whole = taken(every)
    rows = every.tensor_split([max(1, len(every) // 3)])
    shares = cut.shares([index[piece] for piece in rows])
    terms = [[share * x for x in taken(piece)] for piece, share in zip(rows, shares, strict=True) if share]
    return whole, [list(each) for each in zip(*terms, strict=True)], whole[0].dtype


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x.double()))


def _alone(model: nn.Module) -> nn.Module:
    """Returns the model in evaluation mode, whose batch normalisation takes mean 0 and variance 1."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            like = next(itertools.chain(model.parameters(), model.buffers()))
            module.running_mean = torch.zeros(module.num_features, dtype=like.dtype, device=like.device)
            module.running_var = torch.ones(module.num_features, dtype=like.dtype, device=like.device)
    return model
