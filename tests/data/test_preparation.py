"""Normalisation, crops and flips against direct computations."""

import torch
from torch.nn.functional import pad

from hyperopt_cli.data.preparation import Augmentation, channel_statistics, identity_normalization
from hyperopt_cli.data.seeds import generator

CPU = torch.device("cpu")


def pictures(count: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 6, 5), dtype=torch.uint8, generator=generator(7))


def augmented_by(augmentation: Augmentation, x: torch.Tensor, seed: int) -> torch.Tensor:
    draws = augmentation.draw(len(x), generator(seed))
    assert draws is not None
    return augmentation.apply(x, draws)


def test_channel_statistics_equal_torchs_over_the_whole_split() -> None:
    x = pictures()
    shift, scale = channel_statistics([x[:7], x[7:20], x[20:]])
    torch.testing.assert_close(shift.flatten(), x.double().mean((0, 2, 3)))
    torch.testing.assert_close(scale.flatten(), x.double().std((0, 2, 3), correction=0))


def test_features_are_normalised_one_by_one() -> None:
    x = torch.randn(50, 4, generator=generator(1)) * torch.tensor([1.0, 10.0, 0.1, 5.0]) + 3
    z = channel_statistics([x]).to(CPU, torch.float64).apply(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(4, dtype=torch.float64))


def test_single_numbers_are_normalised_together() -> None:
    shift, scale = channel_statistics([torch.tensor([1.0, 3.0])])
    assert (shift.item(), scale.item()) == (2.0, 1.0)


def test_a_constant_channel_becomes_zero() -> None:
    x = torch.full((9, 2), 0.1)
    assert torch.equal(channel_statistics([x]).to(CPU, torch.float32).apply(x), torch.zeros(9, 2))


def test_uint8_without_statistics_is_brought_to_0_to_1() -> None:
    z = identity_normalization(torch.uint8).to(CPU, torch.float32).apply(torch.tensor([[0, 255]], dtype=torch.uint8))
    assert z.tolist() == [[0.0, 1.0]]


def test_indices_stay_as_they_are() -> None:
    tokens = torch.tensor([[3, 5]])
    assert identity_normalization(torch.int64).apply(tokens) is tokens


def test_every_crop_is_a_window_of_the_padded_picture_or_its_mirror_image() -> None:
    x = pictures(64).float()
    augmented = augmented_by(Augmentation(crop=2, flip=True), x, 0)
    assert augmented.shape == x.shape
    padded, seen = pad(x, [2] * 4), set()
    for i in range(64):
        windows = {
            (dy, dx, flipped): (w.flip(2) if flipped else w)
            for dy in range(5)
            for dx in range(5)
            for flipped in (False, True)
            for w in [padded[i, :, dy : dy + 6, dx : dx + 5]]
        }
        found = [key for key, window in windows.items() if torch.equal(window, augmented[i])]
        assert len(found) == 1
        seen.add(found[0])
    assert {dy for dy, _, _ in seen} == {dx for _, dx, _ in seen} == set(range(5))
    assert {flipped for _, _, flipped in seen} == {False, True}


def test_augmentation_is_a_function_of_the_seed() -> None:
    x, augmentation = pictures().float(), Augmentation(crop=1, flip=True)
    assert torch.equal(augmented_by(augmentation, x, 3), augmented_by(augmentation, x, 3))
    assert not torch.equal(augmented_by(augmentation, x, 3), augmented_by(augmentation, x, 4))


def test_a_part_of_a_batch_is_augmented_as_it_is_in_the_whole() -> None:
    x, augmentation = pictures().float(), Augmentation(crop=1, flip=True)
    draws = augmentation.draw(len(x), generator(3))
    assert draws is not None
    assert torch.equal(augmentation.apply(x[7:20], draws.of(7, 20)), augmented_by(augmentation, x, 3)[7:20])


def test_without_crop_and_flip_nothing_is_drawn() -> None:
    rng = generator(0)
    before = rng.get_state()
    assert Augmentation().draw(5, rng) is None
    assert torch.equal(rng.get_state(), before)
