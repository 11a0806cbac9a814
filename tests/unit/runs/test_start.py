"""What a start decides for data of any size."""

import pytest

from boxsup_dist.runs.start import MAX_EPOCHS, MIN_EPOCHS, choose, num_held_out
from jobs.train import read_arguments

MISSING = ["--run-dir", "r", "--records", "t"]


@pytest.mark.parametrize("num_images", [1, 7, 50, 99, 100, 663, 5000, 133_000])
def test_every_number_of_images_gets_a_recipe_that_trains(num_images):
    choice = choose(num_images, 320)
    assert MIN_EPOCHS <= choice.epochs <= MAX_EPOCHS and 1 <= choice.batch <= num_images
    config = read_arguments([*choice.arguments(), *MISSING]).config
    assert config.optimizer.epochs == choice.epochs and config.optimizer.global_batch_size == choice.batch
    assert 0 < config.assignment.warmup_epochs < choice.epochs


def test_as_many_images_are_trained_on_as_in_the_measured_recipe():
    assert choose(663, 320).epochs == 10 and choose(663, 320).steps(663) == 670
    assert choose(663, 320, epochs=3).epochs == 3


@pytest.mark.parametrize("side, crop", [(200, 161), (320, 257), (500, 321), (4000, 321)])
def test_the_crop_follows_the_size_of_the_images(side, crop):
    assert choose(100, side).crop_px == crop


@pytest.mark.parametrize(
    "images, share, held", [(39, 0.1, 0), (40, 0.1, 10), (200, 0.1, 20), (663, 0.1, 66), (663, 0, 0)]
)
def test_a_share_of_the_images_is_held_out_but_never_of_few(images, share, held):
    assert num_held_out(images, share) == held
