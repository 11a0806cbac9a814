"""The contact sheet shows every image with its boxes in the colour of their class."""

import io

import numpy as np
import pytest
from PIL import Image

from boxsup_dist.data.palette import bright_colours
from boxsup_dist.reporting.contact_sheet import COLUMNS, GAP_PX, TILE_PX, Boxed, draw_contact_sheet

CLASSES = ("background", "cat", "a dog with a very long name that does not fit the tile at all")


def boxed(height: int, width: int, boxes, class_ids) -> Boxed:
    image = np.zeros((height, width, 3), np.uint8)
    return Boxed("own/1", image, np.array(boxes, np.float32).reshape(-1, 4), np.array(class_ids, np.int32))


def sheet_of(images) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(draw_contact_sheet(images, CLASSES))))


@pytest.mark.parametrize("count", [1, COLUMNS, COLUMNS + 1])
def test_images_fill_rows(count):
    sheet = sheet_of([boxed(40, 80, [], [])] * count)
    assert sheet.shape[1] == COLUMNS * (TILE_PX + GAP_PX) + GAP_PX
    centres = [GAP_PX + place * (TILE_PX + GAP_PX) + TILE_PX // 2 for place in range(COLUMNS)]
    shown = [sheet[GAP_PX + 20, x].max() < 30 for x in centres]
    assert shown == [place < count for place in range(COLUMNS)]


@pytest.mark.parametrize("height, width", [(40, 80), (640, 20), (60, 1000)])
def test_a_box_is_drawn_where_it_lies(height, width):
    sheet = sheet_of([boxed(height, width, [[0, 0, width, height]], [1])]).astype(int)
    scale = TILE_PX / max(height, width)
    right, bottom = GAP_PX + round(width * scale) - 2, GAP_PX + max(1, round(height * scale)) - 2
    assert np.abs(sheet[bottom, right] - bright_colours(2)[1]).max() < 60


def test_class_names_of_other_scripts_can_be_read():
    cat, house = (
        draw_contact_sheet([boxed(40, 80, [[0, 0, 80, 40]], [1])], ("background", name)) for name in ("кот", "дом")
    )
    assert cat != house, "a font without these letters draws the same boxes for both"


def test_bright_colours_are_bright_and_apart():
    colours = bright_colours(100).astype(int)
    assert (colours.max(1) >= 250).all() and len(np.unique(colours, axis=0)) == 100
    assert (np.abs(np.diff(colours, axis=0)).sum(1) > 100).all()
