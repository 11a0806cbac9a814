"""The learning rate's factor: plateaus of the paper, the polynomial of short runs, the warm-up of both."""

import itertools

import pytest
import torch

from boxsup_dist.config import OptimizerSettings
from boxsup_dist.errors import SettingError
from boxsup_dist.training.optimizer import lr_factor, make_optimizer

PAPER = OptimizerSettings()


def curve(settings: OptimizerSettings, num_steps: int = 10) -> list[float]:
    return [
        lr_factor(settings, epoch=epoch, step=step, num_steps=num_steps)
        for epoch in range(settings.epochs)
        for step in range(num_steps)
    ]


def test_the_paper_divides_by_ten_every_15_epochs():
    factors = curve(PAPER)
    assert len(factors) == 450
    for plateau, expected in enumerate((1, 0.1, 0.01)):
        assert factors[150 * plateau : 150 * (plateau + 1)] == pytest.approx([expected] * 150, rel=1e-12)


@pytest.mark.parametrize("num_steps", [1, 10])
def test_poly_falls_from_one_towards_zero_over_the_run(num_steps):
    settings = OptimizerSettings(epochs=8, schedule="poly")
    factors = curve(settings, num_steps)
    total = 8 * num_steps
    assert factors[0] == 1 and factors[total // 2] == pytest.approx(0.5**0.9)
    assert factors[-1] == pytest.approx((1 / total) ** 0.9) and factors[-1] > 0
    assert all(a > b for a, b in itertools.pairwise(factors))


@pytest.mark.parametrize("schedule", ["step", "poly"])
@pytest.mark.parametrize("warmup_steps", [1, 25])
def test_warm_up_rises_linearly_and_then_leaves_the_schedule_alone(schedule, warmup_steps):
    plain = OptimizerSettings(epochs=6, decay_epochs=2, schedule=schedule)
    warm = OptimizerSettings(epochs=6, decay_epochs=2, schedule=schedule, warmup_steps=warmup_steps)
    for done, (without, with_warmup) in enumerate(zip(curve(plain), curve(warm), strict=True)):
        expected = min(1, (done + 1) / warmup_steps)
        assert with_warmup == pytest.approx(without * expected) and with_warmup > 0


@pytest.mark.parametrize(
    ("kind", "total_steps", "expected"),
    [("sgd", 18, 0), ("adamw", 670, 50), ("adamw", 402, 50), ("adamw", 18, 2), ("adamw", 7, 0)],
)
def test_a_warm_up_that_is_not_set_fits_the_run(kind, total_steps, expected):
    settings = OptimizerSettings(kind, epochs=1, schedule="poly")
    assert settings.warmup(total_steps) == expected
    assert max(curve(settings, total_steps)) == pytest.approx((1 - max(expected - 1, 0) / total_steps) ** 0.9)


def test_a_warm_up_without_a_step_after_it_is_refused():
    assert OptimizerSettings(warmup_steps=17).warmup(18) == 17
    assert OptimizerSettings(warmup_steps=0).warmup(0) == 0
    with pytest.raises(SettingError, match=r"optimizer.warmup_steps; found: 18; expected: fewer than the 18 steps"):
        OptimizerSettings(warmup_steps=18).warmup(18)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_groups_keep_their_rates_and_decays(kind):
    weight, bias = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [weight], "lr": 0.1, "weight_decay": 0.5}, {"params": [bias], "lr": 0.2, "weight_decay": 0.0}]
    optimizer = make_optimizer(groups, OptimizerSettings(kind, momentum=0.8))
    for parameter in (weight, bias):
        parameter.grad = torch.zeros(2)
    optimizer.step()
    assert torch.allclose(weight, torch.full((2,), 1 - 0.1 * 0.5)) and (bias == 1).all()  # decay alone, and none
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    assert all(group.get("momentum", group.get("betas", [0])[0]) == 0.8 for group in optimizer.param_groups)
