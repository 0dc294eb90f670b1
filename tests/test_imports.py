"""Imports run one way, and what a command line has to do first loads no torch."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

import hyperopt_cli
from hyperopt_cli.errors import needing
from hyperopt_cli.registry import MODES

ROOT = Path(hyperopt_cli.__file__).parent

# part -> the parts of the package that it may import, beside itself
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "stopping": set(),
    "byte_sizes": set(),
    "allocator": set(),
    "memory": {"errors"},
    "keeper": set(),
    "callback": set(),
    "registry": set(),
    "optimizers": {"errors"},
    "ranks": {"run_directory", "errors"},
    "problem": {"optimizers", "errors"},
    "task": set(),
    "data": {"stopping", "errors"},
    "models": {"errors"},
    "program": {"memory", "stopping", "errors"},
    "dynamics": {"program", "problem", "optimizers", "errors"},
    "engines": {"dynamics", "program", "optimizers", "memory", "errors", "registry"},
    "checks": {
        "engines",
        "dynamics",
        "program",
        "problem",
        "optimizers",
        "memory",
        "stopping",
        "errors",
        "registry",
    },
    "modes": {
        "byte_sizes",
        "keeper",
        "checks",
        "engines",
        "dynamics",
        "program",
        "problem",
        "optimizers",
        "ranks",
        "memory",
        "stopping",
        "registry",
        "errors",
    },
    "space": {"problem", "optimizers", "errors"},
    "outer": {
        "registry",
        "keeper",
        "callback",
        "modes",
        "space",
        "problem",
        "optimizers",
        "data",
        "ranks",
        "memory",
        "errors",
    },
    "comparison": {"modes", "dynamics", "problem", "optimizers", "memory", "errors"},
    "instantiate": {
        "outer",
        "modes",
        "engines",
        "dynamics",
        "problem",
        "optimizers",
        "space",
        "data",
        "models",
        "task",
        "ranks",
        "recipe",
        "memory",
        "stopping",
        "registry",
        "errors",
    },
    "bench": {
        "commands",
        "instantiate",
        "outer",
        "recipe",
        "space",
        "registry",
        "comparison",
        "modes",
        "checks",
        "engines",
        "dynamics",
        "problem",
        "optimizers",
        "models",
        "data",
        "ranks",
        "run_directory",
        "memory",
        "allocator",
        "errors",
    },
    "recipe": {"registry", "errors"},
    "run_directory": {"callback", "stopping", "errors"},
    "cluster": {"recipe", "run_directory", "errors"},
    "commands": {
        "keeper",
        "callback",
        "instantiate",
        "comparison",
        "outer",
        "modes",
        "checks",
        "problem",
        "optimizers",
        "recipe",
        "ranks",
        "run_directory",
        "memory",
        "stopping",
        "errors",
    },
}
ALL = {path.stem if path.is_file() else path.name for path in ROOT.iterdir() if path.suffix in ("", ".py")}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every dotted name that a file imports, at the top or in a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    names = (name.split(".") for name in imports(path))
    return {parts[1] for parts in names if parts[0] == "hyperopt_cli" and len(parts) > 1 and parts[1] in ALL}


def users(package: str) -> set[str]:
    """The parts that import a package from outside."""
    return {part_of(path) for path in modules() if any(name.split(".")[0] == package for name in imports(path))}


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_what_stands_below_it(part: str) -> None:
    files = [path for path in modules() if part_of(path) == part]
    assert files
    for path in files:
        extra = parts_imported(path) - ALLOWED[part] - {part}
        assert not extra, f"{path.relative_to(ROOT)} imports {extra}"


def test_nothing_below_the_command_line_imports_it() -> None:
    above = ("cli", "__main__")
    assert not {str(path) for path in modules() if part_of(path) not in above and "cli" in parts_imported(path)}


def test_only_what_runs_a_recipe_makes_its_objects() -> None:
    above = {"instantiate", "cli", "commands", "bench"}
    assert {part_of(path) for path in modules() if "instantiate" in parts_imported(path)} <= above


def test_the_sweep_knows_nothing_of_several_processes() -> None:
    sweep = [path for path in modules() if path.relative_to(ROOT).parts[:2] == ("modes", "adjoint")]
    assert sweep
    assert not [path.name for path in sweep if "ranks" in parts_imported(path)]


def test_only_the_recipe_reads_yaml() -> None:
    assert users("yaml") == {"recipe"}


def calls_of_slurm(path: Path) -> set[str]:
    """The names of Slurm's programs that a file holds as strings."""
    constants = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Constant)
    ]
    return {node.value for node in constants} & {"sbatch", "squeue", "scontrol", "scancel", "srun", "sinfo"}


def test_only_one_file_calls_slurm() -> None:
    assert {str(path.relative_to(ROOT)) for path in modules() if calls_of_slurm(path)} == {"cluster/slurm.py"}


def test_only_the_run_directory_writes_for_tensorboard() -> None:
    written = {name for path in modules() for name in imports(path) if "tensorboard" in name}
    there = {
        part_of(path) for path in modules() if any(name.startswith("torch.utils.tensorboard") for name in imports(path))
    }
    assert written
    assert there | users("tensorboard") == {"run_directory"}


def test_the_reading_of_imports_sees_those_inside_functions(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden.py"
    hidden.write_text("def f():\n    from hyperopt_cli.modes import forward\n", encoding="utf-8")
    assert parts_imported(hidden) == {"modes"}


def loads_torch(code: str) -> bool:
    """Whether torch is there after `code`, in a process of its own."""
    checked = f"{code}\nimport sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", checked], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1] == "True"


@pytest.mark.parametrize(
    "code",
    [
        "import hyperopt_cli",
        "import hyperopt_cli; dir(hyperopt_cli); hyperopt_cli.errors",
        "from hyperopt_cli.cluster import array, cancel, job, output, overview, request, sbatch, slurm, submit",
        "from hyperopt_cli import registry\nassert registry.settings(registry.MODES['reverse'].path)",
        "import sys, contextlib\nfrom hyperopt_cli.cli import main\nsys.argv = ['hyperopt', '--help']\n"
        "with contextlib.suppress(SystemExit): main()",
        "import sys, contextlib, runpy\nsys.argv = ['hyperopt', '--version']\n"
        "with contextlib.suppress(SystemExit): runpy.run_module('hyperopt_cli', run_name='__main__')",
    ],
)
def test_torch_is_loaded_only_when_it_is_needed(code: str) -> None:
    assert not loads_torch(code)


def test_the_check_for_torch_bites() -> None:
    assert loads_torch("from hyperopt_cli import Problem")


def test_a_name_that_the_package_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'hyperopt_cli' has no attribute 'Reversable'"):
        hyperopt_cli.Reversable  # noqa: B018


def test_every_public_name_is_there() -> None:
    assert all(getattr(hyperopt_cli, name) is not None for name in hyperopt_cli.__all__)


def test_the_package_says_that_it_is_typed() -> None:
    """PEP 561: without the file a type checker takes every name of the package for Any."""
    assert (resources.files("hyperopt_cli") / "py.typed").is_file()


WITHOUT = """
import os, sys
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
names = "typer rich pydantic yaml tensorboard matplotlib torchvision hypothesis selenium xdist"
for name in names.split():
    sys.modules[name] = None
import pytest
sys.exit(pytest.main(["-p", "no:cacheprovider", "--collect-only", "-m", "gpu", "tests"]))
"""


def test_the_suite_for_a_gpu_is_collected_where_there_is_torch_and_pytest_alone() -> None:
    """A machine with a GPU may have no more; nothing else of the tests is read there."""
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=ROOT.parent, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "test_the_host_waits_for_the_device_once_in_many_steps" in run.stdout
    assert "test_exactness" not in run.stdout


# a finder that knows nothing of some packages, in front of all others
BLOCKING = """
import sys

class Lacking:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in lacking else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Lacking, sys.meta_path)
"""

# every package that is installed, but for those that the wheels of torch and numpy ask for
ALL_BUT_TORCH_AND_NUMPY = """
import re
from importlib import metadata

def written(name):
    return re.sub(r"[-_.]+", "-", name).lower()

there, left = set(), ["torch", "numpy"]
while left:
    name = written(left.pop())
    try:
        asked = metadata.requires(name) or () if name not in there else ()
    except metadata.PackageNotFoundError:
        continue
    there.add(name)
    left += [re.match(r"[\\w.-]+", each)[0] for each in asked if "extra ==" not in each]
owners = metadata.packages_distributions().items()
lacking = {name for name, of in owners if not there & set(map(written, of))} - {"hyperopt_cli"}
assert {"torchvision", "matplotlib", "tensorboard", "rich", "typer", "yaml", "pydantic"} <= lacking
"""

TAKES_TORCH_AND_NUMPY_ALONE = """
import doctest
import torch
import hyperopt_cli
from hyperopt_cli import Problem, data, hypergradient, models, modes, optimizers, outer, space
assert doctest.testmod(modes).attempted >= 3
assert doctest.testmod(modes).failed == 0
data.digits(), models.mlp((1, 8, 8), 10)
problem = Problem(
    init={"x": torch.tensor(1.0, dtype=torch.float64)},
    inner_loss=lambda params, hyper, batch: params["x"] ** 2,
    outer_loss=lambda params, hyper: params["x"] ** 2,
    batch=lambda t: None,
    optimizer=optimizers.SGD(momentum=0.5),
    steps=4,
)
found = {mode: hypergradient(problem, {"lr": torch.tensor(0.1)}, mode).grad["lr"] for mode in modes.MODES}
print(sorted(found))
"""


def test_the_library_takes_torch_and_numpy_alone() -> None:
    code = f"{ALL_BUT_TORCH_AND_NUMPY}{BLOCKING}{TAKES_TORCH_AND_NUMPY_ALONE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sorted(MODES))


@pytest.mark.parametrize(
    ("lacking", "arguments", "said"),
    [
        ("torchvision", ["run", "mnist_lr"], "the data set mnist needs torchvision"),
        ("torchvision", ["validate", "digits_lr", "model={call: torchvision.models.resnet18}"], "needs torchvision"),
        ("matplotlib", ["run", "quadratic"], "the picture of a schedule in a run's log needs matplotlib"),
        ("matplotlib", ["bench", "reversal", "--plot", "a.svg"], "a picture needs matplotlib"),
        ("tensorboard", ["run", "quadratic"], "a log for TensorBoard needs tensorboard"),
        ("optuna", ["run", "quadratic", "--search", "tpe"], "the search tpe needs optuna"),
        ("rich", ["show", "a"], "this command needs rich"),
        ("pydantic", ["validate", "quadratic"], "this command needs pydantic"),
        ("yaml", ["validate", "quadratic"], "this command needs pyyaml"),
        ("typer", ["--help"], "the command line needs typer"),
    ],
)
def test_a_command_names_the_package_that_it_lacks(
    lacking: str, arguments: list[str], said: str, tmp_path: Path
) -> None:
    called = f"sys.argv = {['hyperopt', *arguments]}\nfrom hyperopt_cli.__main__ import main\nmain()"
    code = f"lacking = {{{lacking!r}}}\n{BLOCKING}{called}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env=here()
    )
    package = "pyyaml" if lacking == "yaml" else lacking
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert f"which is not installed; to install it: pip install {package}\n" in done.stderr
    assert not list(tmp_path.iterdir())


def here() -> dict[str, str]:
    """The environment with this package on the path, from whatever folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT.parent)}


def test_what_a_user_imports_is_not_taken_for_what_this_package_lacks() -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"), needing("this"):
        import nowhere_at_all  # type: ignore[import-not-found]  # noqa: F401
