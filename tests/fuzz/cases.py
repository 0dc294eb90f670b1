"""Random training runs with random defects, each from (seed, number) alone."""

from dataclasses import dataclass, field
from typing import Any

import torch

from hyperopt_cli import Problem
from tests.fuzz import pieces, rules
from tests.fuzz.pieces import Draw, Site
from tests.fuzz.truth import Parts, to_double

F64 = torch.float64
FAMILIES = sorted({name.split(":")[0] for name in pieces.DEFECTS})
# kinds of defects, with how often one is drawn
KINDS = {
    "piece": 9,
    "base": 2,
    "late": 4,
    "unseeded": 1.2,
    "seeded": 2,
    "linear algebra": 2,
    "rule": 1.5,
    "outer": 3,
    "schedule": 0.6,
    "init": 0.6,
}


@dataclass
class Case:
    """One training run.

    Attributes:
        constructs: the names of all it is made of.
        defects: those among them that are defects.
        surrogate: E's derivative is autograd's surrogate.
        hidden: it draws without a seed or keeps a counter; whether that has an effect is for its runs to show.
        parts: the run as plain functions.
        optimizer: the package's, of the same rule.
        start: w_0 in float64.
        hyper: lambda in float64.
        depends: w_0 depends on lambda.
    """

    seed: int
    number: int
    dtype: torch.dtype
    constructs: list[str] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)
    surrogate: bool = False
    hidden: bool = False
    parts: Any = None
    optimizer: Any = None
    start: Any = None
    hyper: Any = None
    scheduled: bool = False
    depends: bool = False

    def fresh(self):
        """The same case once more, with new counters and generators."""
        return draw(self.seed, self.number)

    def cast(self, tree):
        """Floating tensors in the format of the case."""
        if self.dtype == F64:
            return tree
        return torch.utils._pytree.tree_map(
            lambda x: x.to(self.dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x, tree
        )

    def in_own_precision(self):
        """The plain run in the case's format, and lambda."""
        parts = self.parts
        own = parts._replace(init=lambda h: self.cast(parts.init(h)), batch=lambda t: self.cast(parts.batch(t)))
        return own, self.cast(self.hyper)

    def problem(self):
        """The run as the package takes it, in the case's format, and lambda."""
        parts, hyper = self.in_own_precision()
        start = parts.init if self.depends else self.cast(self.start)
        schedule = parts.schedule if self.scheduled else None
        return Problem(start, parts.loss, parts.outer, parts.batch, self.optimizer, parts.steps, schedule), hyper


def chain(d, case, length, prefix=""):
    """Ordinary operators, one after the other."""
    made = []
    for _ in range(length):
        table, kind = (pieces.SMOOTH, "smooth") if d.random.random() < 0.68 else (pieces.KINKED, "kinked")
        name = d.choice(sorted(table))
        case.constructs.append(f"{prefix}{kind}: {name}")
        made.append(table[name](d))
    return made


def spliced(d, made, piece):
    made.insert(d.random.randrange(len(made) + 1), piece)


def a_defect(d, tables):
    """The name of one, each family as often as the others, and its piece."""
    if tables is pieces.DEFECTS:
        family = d.choice(FAMILIES)
        name = d.choice(sorted(n for n in tables if n.split(":")[0] == family))
    else:
        name = d.choice(sorted(tables))
    return name, tables[name](d)


def gated(gate, piece):
    return lambda z, s: 1.2 * piece(z, s) if gate(s) else z


def running(made, z, site):
    for piece in made:
        z = piece(z, site)
    return z


def draw(seed, number):
    """The case `number` of `seed`."""
    d = Draw(f"{seed}/{number}", 0, 0, 0)
    d.n, d.m, d.steps = d.choice([3, 4, 5]), d.choice([4, 5, 6]), d.choice([3, 4, 5, 6, 8])
    case = Case(seed, number, torch.float32 if d.random.random() < 0.15 else F64)
    kinds = [
        d.random.choices(list(KINDS), list(KINDS.values()))[0]
        for _ in range(d.random.choices([0, 1, 2, 3], [0.12, 0.48, 0.28, 0.12])[0])
    ]

    def note(name):
        case.constructs.append(name)
        case.defects.append(name)

    if "base" in kinds:
        name = d.choice(sorted(pieces.DEFECT_BASES))
        note(name)
        start, net, shape = pieces.DEFECT_BASES[name](d)
    else:
        name = d.choice(sorted(pieces.BASES))
        case.constructs.append(f"base: {name}")
        start, net, shape = pieces.BASES[name](d)
    size = float(next(iter(start.values())).norm())

    loss_chain = chain(d, case, d.choice([0, 1, 1, 2, 3]))
    outer_chain = chain(d, case, d.choice([0, 0, 1]), "outer ")
    gates = set()
    for kind in kinds:
        if kind in ("piece", "seeded", "unseeded", "linear algebra"):
            table = {
                "piece": pieces.DEFECTS,
                "seeded": pieces.SEEDED,
                "unseeded": pieces.UNSEEDED,
                "linear algebra": pieces.LINALG,
            }[kind]
            name, piece = a_defect(d, table)
            note(f"linear algebra: {name}" if kind == "linear algebra" else name)
            case.hidden |= kind == "unseeded"
            spliced(d, loss_chain, piece)
        elif kind == "late":
            gate_name = d.choice(sorted(pieces.GATES))
            table, prefix = d.choice(
                [
                    (pieces.DEFECTS, ""),
                    (pieces.DEFECTS, ""),
                    (pieces.LINALG, "linear algebra: "),
                    (pieces.SMOOTH, "smooth: "),
                    (pieces.KINKED, "kinked: "),
                    (pieces.SEEDED, ""),
                    (pieces.UNSEEDED, ""),
                ]
            )
            name, piece = a_defect(d, table)
            gate = pieces.GATES[gate_name](d, d.random.randrange(1, d.steps), size)
            gates.add(gate_name)
            note(gate_name)
            note(f"late {prefix}{name}")
            case.hidden |= table is pieces.UNSEEDED or gate_name == "late: a counter"
            spliced(d, loss_chain, gated(gate, piece))
        elif kind == "outer":
            table = d.choice([pieces.DEFECTS, pieces.DEFECTS, pieces.LINALG, pieces.SURROGATES, pieces.UNSEEDED])
            name, piece = a_defect(d, table)
            surrogate = table is pieces.SURROGATES or "straight-through" in name
            if case.surrogate or (surrogate and any(n.startswith("outer ") for n in case.defects)):
                continue  # beside another defect nobody could say what is asked for
            note(f"outer {name}")
            case.surrogate |= surrogate
            case.hidden |= table is pieces.UNSEEDED
            spliced(d, outer_chain, piece)
            if not surrogate and d.random.random() < 0.3:  # an honest rounding or sign is no excuse for a defect
                ordinary = d.choice(["rounded", "floor", "abs", "one_hot_max", "norm_l1"])
                case.constructs.append(f"outer kinked: {ordinary}")
                spliced(d, outer_chain, pieces.KINKED[ordinary](d))

    end_name, outer_end_name = d.choice(sorted(pieces.ENDS)), d.choice(sorted(pieces.ENDS))
    case.constructs += [f"end: {end_name}", f"outer end: {outer_end_name}"]
    end, outer_end = pieces.ENDS[end_name](d), pieces.ENDS[outer_end_name](d)

    if "rule" in kinds:
        name = d.choice(sorted(rules.OWN))
        note(name)
        rule, hyper = rules.OWN[name], {"lr": 0.1}
        made = {"gradient_at": rules.LooksAhead, "result": rules.Averages}.get(name.split()[-1], rules.Own)
        case.optimizer = made(rule=rule)
        plain = rules.with_slots(rule)
    else:
        name = d.choice(sorted(rules.GIVEN))
        case.constructs.append(f"rule: {name}")
        made, plain, hyper = rules.GIVEN[name]
        case.optimizer = made()
    hyper = dict(hyper)
    if any("penalty" in name for name in case.constructs):
        hyper["c"] = 0.3
    direct = d.random.random() < 0.1
    if direct:
        case.constructs.append("outer: a hyperparameter")
        hyper["direct"] = 0.4

    decay, schedule_defect = d.uniform(0, 0.3), None
    if "schedule" in kinds:
        schedule_defect = d.choice(["schedule: item", "schedule: detach", "schedule: no_grad"])
        note(schedule_defect)
    init_defect = None
    if "init" in kinds or d.random.random() < 0.08:
        init_defect = d.choice(["init: clean", "init: clean", "init: detach", "init: item"])
        note(init_defect) if init_defect != "init: clean" else case.constructs.append(init_defect)
        hyper["scale"] = 0.9
        case.depends = True
    lengthens = d.random.random() < 0.15
    case.scheduled = (
        schedule_defect is not None or "late: the step's hyperparameters" in gates or d.random.random() < 0.2
    )
    case.start = start
    case.hyper = {k: torch.tensor(v, dtype=F64) for k, v in hyper.items()}
    xs = d.normal(d.steps, d.n, *shape) if shape is not None else None
    seeds = [d.random.getrandbits(31) for _ in range(d.steps)]
    numbers = any("seeded" in n or "int of" in n or "late: an int" in n for n in case.defects)
    if lengthens and shape is not None and name:
        case.constructs.append("batches differ")

    def schedule(h, t):
        lr = h["lr"] / (1 + decay * t)
        if schedule_defect == "schedule: item":
            lr = lr * (1 - 2 * t * h["lr"].item() / d.steps)
        elif schedule_defect == "schedule: detach":
            lr = lr * (1 - 2 * t * h["lr"].detach() / d.steps)
        elif schedule_defect == "schedule: no_grad":
            with torch.no_grad():
                factor = 1 / (1 + h["lr"] * t)
            lr = lr * factor
        now = {**h, "lr": lr}
        if "late: the step's hyperparameters" in gates:
            now["progress"] = torch.tensor(float(t), dtype=h["lr"].dtype)
        return now

    def init(h):
        if init_defect is None:
            return start
        scale = h["scale"]
        if init_defect == "init: detach":
            scale = scale * scale.detach()
        elif init_defect == "init: item":
            scale = scale * scale.item()
        return {k: v * scale.to(v) for k, v in start.items()}

    def batch(t):
        made = {"step": torch.tensor(float(t), dtype=F64)}
        if xs is not None:
            made["x"] = xs[t] * (1 + 0.1 * t) if lengthens else xs[t]
        if numbers:
            made |= {"n": t, "seed": seeds[t]}
        return made

    def loss(p, h, b):
        site = Site(b, h, p)
        value = end(running(loss_chain, net(site), site), site)
        return value + 0.05 * sum((w**2).sum() for w in p.values())

    def outer(p, h):
        site = Site({"n": 2, "seed": 11, "step": torch.tensor(2.0)}, h, p)
        value = outer_end(running(outer_chain, net(site), site), site)
        value = value + 0.1 * sum((w**2).sum() for w in p.values())
        return value * (1 + h["direct"] ** 2) if direct else value

    case.parts = Parts(
        init,
        loss,
        outer,
        batch,
        schedule if case.scheduled else lambda h, t: h,
        plain,
        d.steps,
        **({"gradient_at": rules.look_ahead} if isinstance(case.optimizer, rules.LooksAhead) else {}),
        **({"result": rules.averaged} if isinstance(case.optimizer, rules.Averages) else {}),
    )
    return case


def doubled(case):
    """The plain run in float64, whatever the case's format: for a float32 case, from the same numbers."""
    parts, hyper = case.in_own_precision()
    if case.dtype == F64:
        return parts, hyper
    raised = parts._replace(
        init=lambda h: to_double(case.cast(parts.init(h)) if not case.depends else parts.init(h)),
        batch=lambda t: to_double(parts.batch(t)),
    )
    return raised, to_double(hyper)
