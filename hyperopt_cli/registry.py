"""Every name that a recipe or a command line may say, where what it names is, and what that is for, in a line.

A part of the package is its own file and its line here: the schema of recipes, the loader, the builder, `mode: auto`,
`engine: auto`, `bench`, `ls`, the help texts and the completion of a shell read names from these tables. Nothing here
imports torch; `load` imports the file of a name when it is asked for.
"""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple


class Entry(NamedTuple):
    """What a name stands for.

    Attributes:
        path: `package.module:attribute`.
        help: what it is for.
    """

    path: str
    help: str


class Engine(NamedTuple):
    """A way to take tangents of the training gradient.

    Attributes:
        path: `package.module:attribute`.
        help: what it is for.
        construction: what differentiates: double backward, forward-mode AD, or a derivative of the list of operators.
            Where differences cannot judge, two engines of different construction have to agree.
        taken: by auto after measuring; by auto where no other is right; by name alone; or by `bench hvp` alone.
    """

    path: str
    help: str
    construction: Literal["double backward", "forward", "operators"]
    taken: Literal["measured", "where others are wrong", "by name", "by bench hvp"] = "measured"


class Loss(NamedTuple):
    """A loss.

    Attributes:
        path: `package.module:attribute`.
        help: what it is for.
        needs_data: whether it compares outputs with targets.
    """

    path: str
    help: str
    needs_data: bool = True


class Outer(NamedTuple):
    """A method of the outer loop.

    Attributes:
        path: `package.module:attribute`.
        help: what it is for.
        settings: keys of the recipe's `outer` that it alone, or with others, takes, with their defaults.
        compares: whether it compares values of E, which then are of the same seeds.
    """

    path: str
    help: str
    settings: dict[str, Any] = {}  # noqa: RUF012 - of a NamedTuple, and never written to
    compares: bool = True


class DataSet(NamedTuple):
    """A data set.

    Attributes:
        path: `package.module:attribute`.
        help: what it is for.
        input_shape: of an example; None where it depends on the arguments or the files.
        num_classes: of the targets; None as above.
        folder: below the root, in which torchvision keeps it; None where nothing is downloaded.
    """

    path: str
    help: str
    input_shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    folder: str | None = None


# a new one at the end: a plan measures from the last to the first, forward mode after what keeps less
MODES: dict[str, Entry] = {
    "auto": Entry("hyperopt_cli.modes.auto:Auto", "the mode of the lowest price: reverse, or forward for one number"),
    "forward": Entry("hyperopt_cli.modes.forward:Forward", "few hyperparameters, horizons of any length"),
    "reverse": Entry("hyperopt_cli.modes.reverse:Reverse", "many hyperparameters; keeps the states of the run"),
    "reversible": Entry(
        "hyperopt_cli.modes.reversible:Reversible", "many hyperparameters, horizons too long to keep the states of"
    ),
}

# in the order in which auto tries them where it does not measure
ENGINES: dict[str, Engine] = {
    "folded": Engine(
        "hyperopt_cli.engines.folded:folded", "our own rules for each operator, K columns at once", "forward"
    ),
    "forward_over_reverse": Engine(
        "hyperopt_cli.engines.forward_over_reverse:forward_over_reverse",
        "forward-mode AD of the backward, K columns by vmap",
        "forward",
    ),
    "reverse_over_reverse": Engine(
        "hyperopt_cli.engines.reverse_over_reverse:reverse_over_reverse",
        "a double backward for K columns by vmap",
        "double backward",
    ),
    "reverse_over_reverse_loop": Engine(
        "hyperopt_cli.engines.reverse_over_reverse:reverse_over_reverse_loop",
        "a double backward for one column after the other",
        "double backward",
    ),
    "forward_over_reverse_loop": Engine(
        "hyperopt_cli.engines.forward_over_reverse:forward_over_reverse_loop",
        "forward-mode AD of the backward, one column after the other",
        "forward",
    ),
    "program": Engine(
        "hyperopt_cli.engines.program:program",
        "the list of operators of the gradient, differentiated for K columns by vmap",
        "operators",
        "where others are wrong",
    ),
    "program_loop": Engine(
        "hyperopt_cli.engines.program:program_loop",
        "the list of operators of the gradient, differentiated for one column after the other",
        "operators",
        "where others are wrong",
    ),
    "dense": Engine(
        "hyperopt_cli.engines.dense:dense", "the whole Hessian, as a check of tiny models", "double backward", "by name"
    ),
    "reverse_over_forward": Engine(
        "hyperopt_cli.engines.reverse_over_forward:reverse_over_forward",
        "a backward through forward-mode AD, never the quickest",
        "forward",
        "by bench hvp",
    ),
}

OPTIMIZERS: dict[str, Entry] = {
    "sgd": Entry("hyperopt_cli.optimizers.sgd:SGD", "lr, momentum, dampening, weight_decay; nesterov: true"),
    "adam": Entry("hyperopt_cli.optimizers.adam:Adam", "lr, beta1, beta2, eps, weight_decay (L2)"),
    "adamw": Entry("hyperopt_cli.optimizers.adamw:AdamW", "lr, beta1, beta2, eps, weight_decay (decoupled)"),
    "rmsprop": Entry("hyperopt_cli.optimizers.rmsprop:RMSprop", "lr, alpha, eps, weight_decay, momentum"),
}

RULE: dict[str, Any] = {"lr": 0.05, "clip_norm": None, "on_nonfinite": "backtrack"}

SEARCH: dict[str, Any] = {"trials": 100, "tied": False}

OUTER: dict[str, Outer] = {
    "auto": Outer(
        "hyperopt_cli.outer.auto:Auto",
        "a scan of plain runs, BFGS in a trust region from its best, and bayes where that is stuck",
    ),
    "bayes": Outer("hyperopt_cli.outer.bayes:Bayes", "a Gaussian process that is told gradients, near the best point"),
    "lbfgs": Outer("hyperopt_cli.outer.lbfgs:LBFGS", "L-BFGS with bounds and a line search, from the recipe's start"),
    "adam": Outer("hyperopt_cli.outer.rules:Adam", "Adam in raw coordinates", RULE, False),
    "sgd": Outer(
        "hyperopt_cli.outer.rules:SGD", "gradient descent in raw coordinates", {**RULE, "momentum": 0.0}, False
    ),
    "sign": Outer(
        "hyperopt_cli.outer.rules:Sign",
        "fixed steps along the sign, halved where it flips; with grow: 1.2 it is Rprop",
        {**RULE, "grow": 1.0},
        False,
    ),
    "random": Outer(
        "hyperopt_cli.outer.random_search:RandomSearch", "a random search by plain runs, as a baseline", SEARCH
    ),
    "tpe": Outer("hyperopt_cli.outer.tpe:TPE", "Optuna's tree-structured Parzen estimator, as a baseline", SEARCH),
}

LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss("hyperopt_cli.task.losses:cross_entropy", "of classes; label_smoothing may be tuned"),
    "mse": Loss("hyperopt_cli.task.losses:mse", "mean squared error of numbers"),
    "output": Loss("hyperopt_cli.task.losses:output", "the mean of the model's outputs, without targets", False),
}

MODELS: dict[str, Entry] = {
    "convnet": Entry("hyperopt_cli.models.convnet:convnet", "a small plain convolutional network"),
    "logistic": Entry("hyperopt_cli.models.logistic:logistic", "one linear layer, a convex problem"),
    "mlp": Entry("hyperopt_cli.models.mlp:mlp", "a multilayer perceptron"),
    "quadratic": Entry("hyperopt_cli.models.quadratic:quadratic", "a bowl with a closed form, without data"),
    "resnet": Entry("hyperopt_cli.models.resnet:resnet", "residual networks for small pictures (He et al. 2016)"),
    "wide_resnet": Entry(
        "hyperopt_cli.models.wide_resnet:wide_resnet", "wide residual networks (Zagoruyko and Komodakis 2016)"
    ),
}

DATA_SETS: dict[str, DataSet] = {
    "cifar10": DataSet(
        "hyperopt_cli.data.torchvision_sets:cifar10",
        "60,000 colour pictures of 10 things",
        (3, 32, 32),
        10,
        "cifar-10-batches-py",
    ),
    "cifar100": DataSet(
        "hyperopt_cli.data.torchvision_sets:cifar100",
        "60,000 colour pictures of 100 things",
        (3, 32, 32),
        100,
        "cifar-100-python",
    ),
    "digits": DataSet("hyperopt_cli.data.digits:digits", "1,797 handwritten digits, inside the package", (1, 8, 8), 10),
    "fashion_mnist": DataSet(
        "hyperopt_cli.data.torchvision_sets:fashion_mnist",
        "70,000 grey pictures of clothes",
        (1, 28, 28),
        10,
        "FashionMNIST",
    ),
    "image_folder": DataSet("hyperopt_cli.data.image_folder:image_folder", "your own pictures, one folder a class"),
    "mnist": DataSet("hyperopt_cli.data.torchvision_sets:mnist", "70,000 handwritten digits", (1, 28, 28), 10, "MNIST"),
    "synthetic": DataSet("hyperopt_cli.data.synthetic:synthetic", "a mixture of Gaussians, made of numbers"),
}

# in the order of `hyperopt --help`; a command's help is its docstring
COMMANDS: dict[str, str] = {
    "run": "hyperopt_cli.cli.run:run",
    "train": "hyperopt_cli.cli.train:train",
    "compare": "hyperopt_cli.cli.compare:compare",
    "plan": "hyperopt_cli.cli.plan:plan",
    "bench": "hyperopt_cli.cli.bench:bench",
    "validate": "hyperopt_cli.cli.validate:validate",
    "ls": "hyperopt_cli.cli.recipes:ls",
    "cat": "hyperopt_cli.cli.recipes:cat",
    "cp": "hyperopt_cli.cli.recipes:cp",
    "schema": "hyperopt_cli.cli.recipes:schema",
    "runs": "hyperopt_cli.cli.runs:runs",
    "show": "hyperopt_cli.cli.show:show",
    "submit": "hyperopt_cli.cli.submit:submit",
    "status": "hyperopt_cli.cli.status:status",
    "logs": "hyperopt_cli.cli.logs:logs",
    "cancel": "hyperopt_cli.cli.cancel:cancel",
    "doctor": "hyperopt_cli.cli.doctor:doctor",
}


def load(path: str) -> Any:
    """Returns what is at `package.module:attribute`; its module is imported."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


class Setting(NamedTuple):
    """An argument of a mode: its annotation as text, and its default."""

    annotation: str
    default: Any


@cache
def settings(path: str) -> dict[str, Setting]:
    """Returns the fields of the dataclass at `package.module:attribute`, read from its source: nothing is imported.

    They stand in the body of the class itself, each with a literal as its default. Fields that only its constructor
    takes (`InitVar`) and class variables are left out.

    Raises:
        TypeError: there is no such class, or a field of it has no default or one that is no literal.
        OSError, SyntaxError: the file cannot be read.

    >>> settings("hyperopt_cli.modes.forward:Forward")["columns_at_once"]
    Setting(annotation='int | None', default=None)
    """
    module, _, name = path.partition(":")
    file = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    parsed = ast.parse(file.read_text(encoding="utf-8"), str(file))
    classes = {node.name: node.body for node in parsed.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        raise TypeError(f"{path}: {file.name} has no class {name}; it has {', '.join(classes) or 'none'}")
    body, found = classes[name], {}
    for node in body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        annotation = ast.unparse(node.annotation)
        if annotation.startswith(("InitVar", "ClassVar")):
            continue
        try:
            found[node.target.id] = Setting(annotation, ast.literal_eval(node.value))  # type: ignore[arg-type]
        except ValueError:
            raise TypeError(f"{path}: {node.target.id}: a setting has a literal as its default") from None
    return found
