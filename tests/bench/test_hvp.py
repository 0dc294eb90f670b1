"""`hvp`: every engine on every network of the package, and wrong products that show."""

import importlib.util
from dataclasses import replace

import pytest
import torch

from hyperopt_cli.bench import hvp
from hyperopt_cli.bench.hvp import GRADIENT, measure
from hyperopt_cli.bench.networks import OWN, networks, ready
from hyperopt_cli.bench.report import Case, Report, Settings
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.engines import MEASURED
from hyperopt_cli.errors import UsageError
from tests.bench.sizes import NETWORKS
from tests.bench.wrong import doubled, lopsided
from tests.devices import Device, devices

IN_FLOAT64 = replace(NETWORKS, dtype="float64", widths=(4,))
# which are wrong through a normalisation layer (this is what the benchmark is there to show)
NORMALISED = ("convnet", "resnet", "wide_resnet")


@pytest.fixture(scope="module")
def report() -> Report:
    return measure(Settings(repeat=1), IN_FLOAT64)


def checks(case: Case) -> dict[str, tuple[float, float | None]]:
    return {
        variant.name: (variant.figures["symmetry_error"], variant.figures["difference"])  # type: ignore[misc]
        for variant in case.ran
        if variant.name != GRADIENT
    }


def test_on_a_cpu_the_packages_networks_are_measured_by_every_engine(report: Report) -> None:
    assert report.settings["models"] == list(OWN)
    assert [case.title.split(" (")[0] for case in report.cases] == [
        "logistic regression 6-10",
        "MLP 6-5-4-10",
        "convnet with GroupNorm, 8 x 8",
        "ResNet-8, 8 x 8",
        "WRN-10-1, 8 x 8",
    ]
    for case in report.cases:
        assert case.reference == GRADIENT
        assert [variant.name for variant in case.variants] == [GRADIENT, *MEASURED]
        assert case.title.endswith(", float64")


def test_right_engines_give_symmetric_products_that_agree(report: Report) -> None:
    for name, case in zip(OWN, report.cases, strict=True):
        found = checks(case)
        assert {"forward_over_reverse", "reverse_over_reverse_loop"} <= set(found)
        for engine, (symmetry_error, difference) in found.items():
            if engine == "reverse_over_forward" and name in NORMALISED:
                continue
            assert symmetry_error < 1e-12, (name, engine)
            assert difference is None or difference < 1e-10, (name, engine)


def test_a_variant_that_refuses_says_why(report: Report) -> None:
    refused = {variant.name: variant.reason for case in report.cases for variant in case.variants if not variant.timing}
    assert all(refused.values())


@pytest.mark.parametrize(("engine", "asymmetric"), [(lopsided, True), (doubled, False)])
def test_a_wrong_engine_shows(monkeypatch: pytest.MonkeyPatch, engine: object, asymmetric: bool) -> None:
    monkeypatch.setitem(MEASURED, "wrong", engine)  # type: ignore[misc]
    (case,) = measure(Settings(repeat=1, models=("mlp",)), IN_FLOAT64).cases
    symmetry_error, difference = checks(case)["wrong"]
    assert difference is not None
    assert difference > 0.1
    assert (symmetry_error > 1e-3) is asymmetric


def test_memory_and_its_ratio_are_there(report: Report) -> None:
    for case in report.cases:
        for variant in case.ran:
            assert isinstance(variant.figures["taken_bytes"], int)
            assert ("memory_over_gradient" in variant.figures) is (variant.name != GRADIENT)


def test_the_batch_can_be_chosen() -> None:
    (case,) = measure(Settings(repeat=1, models=("mlp",), batch=2), NETWORKS).cases
    assert case.title == "MLP 6-5-4-10 (109 parameters), batch 2, float32"


def test_an_unknown_network_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hvp, "interleaved", lambda *_: pytest.fail("it was measured"))
    with pytest.raises(UsageError, match="got mpl; allowed are logistic, mlp, convnet"):
        measure(Settings(models=("mlp", "mpl")), NETWORKS)


def test_bert_without_transformers_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperopt_cli.bench.networks.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'hyperopt-cli\[transformers\]'.*--models mlp"):
        measure(Settings(models=("mlp", "bert")), NETWORKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet34", "vit_b_16", "bert"])
def test_the_published_networks_have_right_products(name: str) -> None:
    if name == "bert" and importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    engines = ("forward_over_reverse", "reverse_over_reverse_loop")
    asked = Settings(repeat=1, models=(name,), engines=engines, device=torch.device("cpu"))
    (case,) = measure(asked, IN_FLOAT64).cases
    found = checks(case)
    for engine in engines:
        symmetry_error, difference = found[engine]
        assert symmetry_error < 1e-10
        assert difference is None or difference < 1e-10


@pytest.mark.parametrize("engine", ["forward_over_reverse", "reverse_over_reverse", "reverse_over_forward", "program"])
def test_a_product_stays_on_the_device(engine: str) -> None:
    meta = torch.device("meta")
    point = hvp._point(ready(networks(NETWORKS, meta)["mlp"], 1, 2, NETWORKS, meta))
    with surroundings(), Device() as device:
        product = hvp._product(engine, point, {name: x[1:] for name, x in point.u_and_v.items()})
    assert devices(product) == {"meta"}
    assert device.waits == []
