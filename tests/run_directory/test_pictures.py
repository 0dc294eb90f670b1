import numpy as np
import torch

from hyperopt_cli.run_directory.pictures import NAMED_GROUPS, schedule_figure


def test_the_start_is_grey_and_now_is_colored_over_it() -> None:
    start, now = torch.full((50,), 0.1), torch.linspace(0.2, 0.1, 50)
    (axes,) = schedule_figure("lr", start, now, "start", "outer step 4").axes
    before, after = axes.lines
    np.testing.assert_allclose(np.asarray(before.get_ydata()), start)
    np.testing.assert_allclose(np.asarray(after.get_ydata()), now)
    assert (before.get_color(), before.get_label()) == ("0.65", "start")
    assert (after.get_color(), after.get_label()) == ("tab:blue", "outer step 4")
    assert (axes.get_yscale(), axes.get_ylabel()) == ("linear", "lr")


def test_orders_of_magnitude_get_a_logarithmic_axis() -> None:
    (axes,) = schedule_figure("lr", torch.ones(9), torch.logspace(0, -3, 9), "start", "now").axes
    assert axes.get_yscale() == "log"


def test_values_of_zero_stay_on_a_linear_axis() -> None:
    (axes,) = schedule_figure("momentum", torch.zeros(9), torch.linspace(0, 0.9, 9), "start", "now").axes
    assert axes.get_yscale() == "linear"


def test_each_group_has_its_line_and_only_few_are_named() -> None:
    groups = NAMED_GROUPS + 4
    now = torch.rand(20, groups) + 1
    (axes,) = schedule_figure("lr", torch.ones(20, groups), now, "start", "now").axes
    assert len(axes.lines) == 2 * groups
    np.testing.assert_allclose(np.stack([line.get_ydata() for line in axes.lines[groups:]], axis=1), now)
    named = [line.get_label() for line in axes.lines if not str(line.get_label()).startswith("_")]
    assert named == ["start", "now, group 0", f"now, group {groups - 1}"]
