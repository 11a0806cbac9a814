"""jobs.tune_crf: the grid holds every combination, and what it prints is what evaluate reads."""

from __future__ import annotations

import pytest

from boxsup_dist.errors import SettingError
from boxsup_dist.model.crf import CRF_SETTINGS, CrfSettings, crf_settings
from jobs.tune_crf import Settings, grid, to_text


def test_the_grid_is_every_combination_once() -> None:
    settings = Settings("r", "t", "o", bilateral_weight=(4, 5.5), bilateral_rgb_std=(3,), spatial_xy_std_px=(1e-3, 2))
    found = grid(settings)
    assert len(found) == len(set(found)) == 2 * 3 * 2
    assert found[0] == CrfSettings(4, 33, 3, 3, 1e-3)


@pytest.mark.parametrize("crf", [*CRF_SETTINGS.values(), CrfSettings(0.5, 1e-3, 12.25, 0, 7)])
def test_the_text_of_a_set_is_read_back(crf: CrfSettings) -> None:
    assert crf_settings(to_text(crf)) == crf


@pytest.mark.parametrize("bad", [{"bilateral_weight": ()}, {"spatial_xy_std_px": (0.0,)}, {"spatial_weight": (-1.0,)}])
def test_values_that_cannot_work_are_refused(bad: dict) -> None:
    with pytest.raises(SettingError):
        grid(Settings("r", "t", "o", **bad))
