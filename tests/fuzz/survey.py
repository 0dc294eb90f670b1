"""False refusals: 300 ordinary models and losses, trained for two or three steps, in at least one exact mode.

    make survey                                       all of them (hours); continues where it was ended
    make survey SURVEY="--rows 'nn.*'"                those whose names match
    make survey SURVEY="--largest 1e6"                those with at most a million weights
    python -m tests.fuzz.survey --only 'nn.LSTM'      one, with all that is known of it
    python -m tests.fuzz.survey --table               what is done, without going on

SGD with momentum, lambda = (lr, momentum), float32; a row that draws at random (dropout) runs in float64, for in
float32 it would draw other numbers than its truth. The truth is differences of the plain run in float64 (`truth.py`).
A row is

    right           a mode answers, and the differences confirm it
    not judged      a mode answers, and differences have no answer: a unit flips at every step size
    FALSE REFUSAL   no mode answers, though a derivative written without the package (`candidates.py`) is the truth
    refused         no mode answers, and no candidate is right either
    WRONG, crash    a mode answers another number, or ends in an error that is no refusal
    untrainable     the plain run itself fails here (a model that is missing, a shape)

Small models run in every mode; of one with more than two million weights the first mode that answers is enough.
"""

import argparse
import copy
import fnmatch
import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from hyperopt_cli import Forward, Problem, Reverse, Reversible, hypergradient, optimizers
from hyperopt_cli.errors import NonFiniteError, UsageError, VerificationError
from tests.fuzz import rules
from tests.fuzz.candidates import CANDIDATES
from tests.fuzz.judge import TooSlow, within
from tests.fuzz.lines import Lines, digest
from tests.fuzz.ordinary import LARGEST, ROWS
from tests.fuzz.truth import E, Parts, Unjudged, error, to_double, truth

FOLDER = Path("runs/fuzz")
F64 = torch.float64
TOLERANCE = 1e-2
SMALL = 2e6
STENCIL = {1: 0.5, -1: -0.5}  # second order
STEPS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
HYPER = {"lr": torch.tensor(0.02), "momentum": torch.tensor(0.5)}
MODES = {
    "forward": lambda: Forward(),
    "reverse": lambda: Reverse(),
    "reversible": lambda: Reversible(),
}


class Trained:
    """A row as a training run, in the format that is asked for."""

    def __init__(self, name):
        self.name = name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.row = ROWS[name]()
        self.size = sum(p.numel() for p in self.row.module.parameters())
        self.steps = 3 if self.size <= SMALL else 2
        self.dtype = torch.float32
        if self.size <= LARGEST and self._draws():
            self.dtype = F64

    def _draws(self):
        """Whether its loss depends on the seed."""
        parts = self.parts(torch.float32)
        w, (inputs, _) = parts.init(HYPER), parts.batch(0)
        with torch.no_grad():
            try:
                return float(parts.loss(w, HYPER, (inputs, 0))) != float(parts.loss(w, HYPER, (inputs, 1)))
            except RuntimeError:  # it differentiates in its forward
                return False

    def inputs(self, seed, dtype):
        made = self.row.inputs(torch.Generator().manual_seed(seed))
        return to_double(made) if dtype == F64 else made

    def parts(self, dtype):
        model = copy.deepcopy(self.row.module).to(dtype).train()
        for module in model.modules():
            if isinstance(module, _BatchNorm):  # a step is a function of weights and batch
                module.running_mean = module.running_var = module.num_batches_tracked = None
        weights = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}

        def loss(p, h, batch):
            inputs, seed = batch
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return self.row.loss(functional_call(model, p, inputs), *inputs)

        held_out = self.inputs(1000, dtype), 1000
        return Parts(
            init=lambda h: weights,
            loss=loss,
            outer=lambda p, h: loss(p, h, held_out),
            batch=lambda t: (self.inputs(t, dtype), t),
            schedule=lambda h, t: h,
            rule=rules.sgd({}),
            steps=self.steps,
        )

    def problem(self, dtype):
        parts = self.parts(dtype)
        return Problem(parts.init({}), parts.loss, parts.outer, parts.batch, optimizers.SGD(), parts.steps)

    def hyper(self, dtype):
        return {k: x.to(dtype) for k, x in HYPER.items()}


def answer(trained, mode, dtype):
    """(verdict, the hypergradient or a message)."""
    torch.manual_seed(0)
    try:
        return "answered", hypergradient(trained.problem(dtype), trained.hyper(dtype), mode).grad
    except NonFiniteError as e:
        return "crash", f"NonFiniteError: {e}"
    except (UsageError, VerificationError) as e:
        return "refused", f"{type(e).__name__}: {e}"
    except TooSlow:
        raise
    except Exception as e:
        return "crash", f"{type(e).__name__}: {e}"


def confirmed(trained, mode, grad, found):
    """The verdict of an answer, and its error; float32 that is off is asked once more in float64."""
    if found is None:
        return "not judged", None
    off = error(grad, found.grad, found.value)
    if off > TOLERANCE and trained.dtype != F64:
        said, grad = answer(trained, mode, F64)
        if said == "answered":
            off = error(grad, found.grad, found.value)
    return ("right" if off <= TOLERANCE else "WRONG"), off


def surveyed(name, limit_s):
    """The line of one row."""
    begun = time.perf_counter()
    line = {"modes": {}, "verdict": "untrainable"}
    try:
        with within(limit_s), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _survey(name, line)
    except TooSlow as e:
        line |= {"verdict": "too slow", "message": str(e)}
    line["seconds"] = round(time.perf_counter() - begun, 1)
    return line


def _survey(name, line):
    try:
        trained = Trained(name)
        line |= {"weights": trained.size, "dtype": str(trained.dtype)[6:]}
        if not torch.isfinite(E(trained.parts(trained.dtype), trained.hyper(trained.dtype))):
            raise ValueError("E is not finite")
    except TooSlow:
        raise
    except Exception as e:
        line["message"] = f"{type(e).__name__}: {str(e)[:200]}"
        return
    try:
        found = truth(lambda: trained.parts(F64), trained.hyper(F64), tolerance=1e-4, stencil=STENCIL, ladder=STEPS)
        line |= {"truth": {k: float(v) for k, v in found.grad.items()}, "step": found.step, "value": found.value}
    except Unjudged as e:
        found, line["reason"] = None, str(e)
    except RuntimeError as e:  # a constant of the row's own in float32, for one
        line["message"] = f"in float64: {type(e).__name__}: {str(e)[:200]}"
        return
    for label, made in MODES.items():
        mode = made()
        said, got = answer(trained, mode, trained.dtype)
        said, what = confirmed(trained, mode, got, found) if said == "answered" else (said, got)
        line["modes"][label] = {"verdict": said, ("message" if isinstance(what, str) else "error"): what}
        if said in ("right", "not judged") and trained.size > SMALL:
            break
    verdicts = [v["verdict"] for v in line["modes"].values()]
    for worst in ("WRONG", "crash", "right", "not judged"):
        if worst in verdicts:
            line["verdict"] = worst
            break
    else:
        line["verdict"], line["candidates"] = _refused(trained, found)


def _refused(trained, found):
    if found is None:
        return "refused", "no truth"
    for name, candidate in CANDIDATES.items():
        try:
            with sdpa_kernel(SDPBackend.MATH):
                grad = candidate(trained.parts(trained.dtype), trained.hyper(trained.dtype))
        except TooSlow:
            raise
        except Exception:
            continue
        if error(grad, found.grad, found.value) <= TOLERANCE:
            return "FALSE REFUSAL", name
    return "refused", "no candidate is right"


def size_of(name):
    """Weights of a row's model, without filling them in."""
    with torch.device("meta"):
        return sum(p.numel() for p in ROWS[name]().module.parameters())


def run(names, limit_s, largest=LARGEST, folder=FOLDER, quiet=False):
    """The lines of these rows; those that are not in the file yet are judged now."""
    lines = Lines(folder / f"survey-{digest()}.jsonl")
    for name in names:
        if name in lines.done:
            continue
        if largest < LARGEST:
            try:
                if size_of(name) > largest:
                    continue
            except Exception:  # some models cannot be made without numbers
                if name.startswith("torchvision"):
                    continue
        if lines.died(name):
            line = {"verdict": "crash", "modes": {}, "message": "the process died in this row, twice"}
        else:
            lines.begin(name)
            line = surveyed(name, limit_s)
        lines.end(name, line)
        if not quiet:
            said = ", ".join(f"{m} {v['verdict']}" for m, v in line["modes"].items())
            why = line.get("message") or next((v["message"] for v in line["modes"].values() if "message" in v), "")
            print(f"{line['verdict']:14s} {name:50s} {line['seconds']:6.1f} s  {said}  {str(why)[:110]}", flush=True)
    return {name: lines.done[name] for name in names if name in lines.done}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="*", help="a pattern of names")
    parser.add_argument("--largest", type=float, default=LARGEST, help="weights")
    parser.add_argument("--limit", type=int, default=1800, help="seconds a row")
    parser.add_argument("--only")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--names", action="store_true", help="the names of the rows")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in ROWS if fnmatch.fnmatch(name, given.rows)]
    if given.names:
        print("\n".join(names))
        return 0
    if given.only:
        print(json.dumps(surveyed(given.only, given.limit), indent=1))
        return 0
    kept = FOLDER / f"survey-{digest()}.jsonl"
    done = Lines(kept).done if given.table else run(names, given.limit, given.largest)
    counts = Counter(line["verdict"] for line in done.values())
    bad = ("FALSE REFUSAL", "WRONG", "crash")
    for verdict in (*bad, "refused", "untrainable", "too slow"):
        for name in sorted(n for n, line in done.items() if line["verdict"] == verdict):
            print(f"{verdict:14s} {name}")
    print(f"{len(done)} of {len(ROWS)} rows: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common()))
    return 1 if any(counts[verdict] for verdict in bad) else 0


if __name__ == "__main__":
    sys.exit(main())
