"""A sample of `make fuzz`, and what the fuzzer itself promises."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.fuzz import cases, judge, rules
from tests.fuzz.__main__ import counted
from tests.fuzz.candidates import CANDIDATES
from tests.fuzz.lines import Lines
from tests.fuzz.pieces import straight
from tests.fuzz.truth import Parts, Unjudged, error, train, truth

F64 = torch.float64
SAMPLE = range(20)


@pytest.fixture(scope="module", autouse=True)
def generators():
    """The fuzzer seeds the global ones: other tests get theirs back."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("number", SAMPLE)
def test_every_mode_is_right_or_refuses(number):
    line = judge.judged(seed=13, number=number)
    bad = {m: v for m, v in line["modes"].items() if v["verdict"] in ("WRONG", "crash")}
    assert not bad, f"python -m tests.fuzz --seed 13 --only {number}: {line['constructs']}"


def parts(loss, outer=lambda p, h: (p["w"] ** 2).sum(), steps=3, rule=None):
    return Parts(
        init=lambda h: {"w": torch.tensor([0.4, -0.3, 0.8], dtype=F64)},
        loss=loss,
        outer=outer,
        batch=lambda t: {"step": t},
        schedule=lambda h, t: h,
        rule=rule or rules.sgd({}),
        steps=steps,
    )


LR = {"lr": torch.tensor(0.1, dtype=F64)}


def bowl(p, h, b):
    return (p["w"] ** 2).sum()


def test_truth_of_a_quadratic_is_its_closed_form():
    size = 0.4**2 + 0.3**2 + 0.8**2
    found = truth(lambda: parts(bowl, steps=4), LR)
    assert float(found.grad["lr"]) == pytest.approx(-16 * 0.8**7 * size, rel=1e-10)


def test_truth_takes_a_detached_number_for_what_training_does_with_it():
    def loss(p, h, b):
        return (p["w"] * p["w"].detach()).sum()  # trains as w^2 / 2 does

    found = truth(lambda: parts(loss, steps=4), LR)
    assert float(found.grad["lr"]) == pytest.approx(-8 * 0.9**7 * 0.89, rel=1e-10)
    assert error(CANDIDATES["unroll"](parts(loss), LR), found.grad, found.value) > 1e-2


@pytest.mark.parametrize(
    "kinked",
    [
        lambda w: F.relu(w - 0.32),
        lambda w: (w - 0.32).abs(),
        lambda w: w.clamp(max=0.32),
        lambda w: torch.maximum(w, torch.full_like(w, 0.32)),
        lambda w: F.huber_loss(w, torch.zeros_like(w), reduction="none", delta=0.32),
        lambda w: torch.round(w / 0.64) * w,
        lambda w: w[w.argmax()] * w.sum() if w.max() > 0.64 else w,
        lambda w: F.hardtanh(w, -0.32, 0.32),
        lambda w: torch.where(w > 0.32, w, 2 * w),
    ],
)
def test_a_difference_across_a_kink_does_not_count(kinked):
    """After one step of rate .1 on w^2, w is .32 in its first entry and .64 in the last, but for an eps."""

    def objective(p, h):
        return kinked(p["w"] * (1 + 1e-9)).sum()

    with pytest.raises(Unjudged, match="kink"):
        truth(lambda: parts(bowl, objective, steps=1), LR)


def test_a_difference_beside_a_kink_counts_at_a_smaller_step():
    found = truth(lambda: parts(bowl, lambda p, h: F.relu(p["w"] - 0.31999).sum(), steps=1), LR)
    assert float(found.grad["lr"]) == pytest.approx(-2 * (0.4 + 0.8), rel=1e-7)
    assert found.step < 1e-3


def test_a_straight_through_estimator_in_E_has_the_derivative_of_its_surrogate():
    outer = lambda p, h: (straight(p["w"]) * torch.tensor([1.0, 2.0, 3.0], dtype=F64)).sum()  # noqa: E731
    plain = truth(lambda: parts(bowl, outer, steps=2), LR)
    surrogate = truth(lambda: parts(bowl, outer, steps=2), LR, surrogate=True)
    assert float(plain.grad["lr"]) == 0.0
    slope = -4 * 0.8 * (0.4 - 2 * 0.3 + 3 * 0.8)
    assert float(surrogate.grad["lr"]) == pytest.approx(slope, rel=1e-9)


def test_a_run_that_is_not_finite_has_no_truth():
    with pytest.raises(Unjudged, match="finite"):
        truth(lambda: parts(lambda p, h, b: p["w"].sqrt().sum()), LR)


@pytest.mark.parametrize("name", list(rules.GIVEN))
def test_plain_rules_train_as_torch_optim_does(name):
    made, rule, hyper = rules.GIVEN[name]
    ours = made()
    settings = {"lr": ours.lr, **hyper}
    if "Adam" in name:
        decay = settings.get("weight_decay", ours.weight_decay)
        betas = settings.get("beta1", ours.beta1), settings.get("beta2", ours.beta2)
        kind = torch.optim.AdamW if name == "AdamW" else torch.optim.Adam
        make = lambda w: kind([w], settings["lr"], betas, ours.eps, decay)  # noqa: E731
    elif name == "RMSprop":
        make = lambda w: torch.optim.RMSprop([w], settings["lr"], settings["alpha"], ours.eps)  # noqa: E731
    else:
        momentum = settings.get("momentum", ours.momentum)
        decay = settings.get("weight_decay", ours.weight_decay)
        make = lambda w: torch.optim.SGD([w], settings["lr"], momentum, 0, decay, nesterov=ours.nesterov)  # noqa: E731

    def loss(p, h, b):
        return (p["w"] ** 2 * torch.tensor([1.0, 0.5, 2.0], dtype=F64)).sum() + p["w"].sin().sum()

    w = torch.nn.Parameter(torch.tensor([0.4, -0.3, 0.8], dtype=F64))
    optimizer = make(w)
    for _ in range(5):
        optimizer.zero_grad()
        loss({"w": w}, {}, None).backward()
        optimizer.step()
    plain = train(parts(loss, steps=5, rule=rule), {k: torch.tensor(v, dtype=F64) for k, v in hyper.items()})
    torch.testing.assert_close(plain["w"], w.detach(), rtol=1e-12, atol=1e-12)


def test_a_case_is_the_same_each_time():
    for number in range(30):
        one, other = cases.draw(5, number), cases.draw(5, number)
        assert one.constructs == other.constructs
        assert all(torch.equal(one.start[k], other.start[k]) for k in one.start)
        if not one.hidden:
            runs = []
            for case in (one, other):
                judge.seeded(0)
                runs.append(train(case.parts, case.hyper))
            assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0]), (number, one.constructs)


def test_every_construct_is_drawn():
    drawn = {name for number in range(4000) for name in cases.draw(0, number).constructs}
    for table in (cases.pieces.DEFECTS, cases.pieces.SEEDED, cases.pieces.UNSEEDED):
        assert set(table) <= drawn
        assert any(f"late {name}" in drawn for name in table)
    assert set(cases.pieces.GATES) | set(cases.pieces.DEFECT_BASES) | set(rules.OWN) <= drawn
    assert {f"linear algebra: {n}" for n in cases.pieces.LINALG} <= drawn
    assert {f"outer {n}" for n in cases.pieces.SURROGATES} <= drawn


def first(holds):
    return next(case for case in (cases.draw(0, number) for number in range(4000)) if holds(case))


@pytest.mark.parametrize("name", ["unseeded: torch.randn", "counter: factor", "unseeded: an own generator"])
def test_what_draws_without_a_seed_must_be_refused(name):
    case = first(lambda c: c.defects == [name] and c.dtype == F64)
    assert judge.truth_of(case) == (None, "draws without a seed, or counts", True)


def test_an_unseeded_draw_without_effect_has_a_truth():
    case = first(lambda c: c.defects == ["unseeded: no effect"] and c.dtype == F64)
    found, reason, must_refuse = judge.truth_of(case)
    assert found is not None, reason
    assert not must_refuse


def test_a_wrong_number_is_found():
    case = first(lambda c: not c.defects and c.dtype == F64 and "rule: SGD" in c.constructs)
    found, reason, _ = judge.truth_of(case)
    assert found is not None, reason
    right = judge.verdict(case, judge.MODES["reverse"](), found, False)
    assert right["verdict"] == "right"
    off = found._replace(grad={k: x * (1 + 3e-6) for k, x in found.grad.items()})
    assert judge.verdict(case, judge.MODES["reverse"](), off, False)["verdict"] == "WRONG"
    assert judge.verdict(case, judge.MODES["reverse"](), None, True)["verdict"] == "WRONG"


def test_errors_are_relative_to_their_entry():
    want = {"a": torch.tensor([1.0, 0.1], dtype=F64)}
    assert error({"a": torch.tensor([1.0, 0.1001], dtype=F64)}, want, 0.0) == pytest.approx(1e-3)
    assert error({"a": torch.tensor([1.0, math.nan], dtype=F64)}, want, 0.0) == math.inf


def test_a_file_of_lines_is_continued_after_a_kill(tmp_path):
    lines = Lines(tmp_path / "x.jsonl")
    lines.begin(0)
    lines.end(0, {"verdict": "right"})
    lines.begin(1)
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write('{"row": 1, "verd')
    again = Lines(tmp_path / "x.jsonl")
    assert set(again.done) == {0}
    assert not again.died(1)
    again.begin(1)
    assert Lines(tmp_path / "x.jsonl").died(1)


def test_the_table_counts_by_construct():
    def line(verdict, candidate):
        made = {"constructs": ["hook: scaled", "smooth: tanh"], "defects": ["hook: scaled"], "dtype": "float64"}
        modes = {"forward": {"verdict": verdict}, "reverse": {"verdict": "refused"}}
        return {**made, "must_refuse": False, "truth": {}, "candidate": candidate, "modes": modes}

    counts = counted([line("right", True), line("refused", True), line("WRONG", False)])["hook: scaled"]
    assert (counts["cases"], counts["possible"], counts["answered"], counts["WRONG"]) == (3, 2, 1, 1)
