"""A good recipe, and what surrounds one mistake to make the rest of a recipe good."""

from pathlib import Path

GOOD = """\
model: {call: mlp, hidden: [8]}
dataset: {call: digits, batch_size: 32}
optimizer: {name: sgd, nesterov: false}
steps: 20
hyperparameters:
  lr: {initial: 0.1, transform: log, schedule: {windows: 2}}
  momentum: 0.9
  l2: {value: 1e-3}
"""


def without(*keys: str) -> str:
    """Returns `GOOD` without the top-level keys."""
    lines = GOOD.splitlines(keepends=True)
    if "hyperparameters" in keys:
        lines = lines[:4]
    return "".join(line for line in lines if line.partition(":")[0] not in keys)


def written(folder: Path, text: str) -> Path:
    """Writes a recipe and returns its path."""
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path
