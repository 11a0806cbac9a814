"""Images that two tables share: equal files, and one photograph under the names of two editions of a data set."""

import pytest

from boxsup_dist.data.shared_images import find_duplicates, published_name
from boxsup_dist.data.tables import Table
from boxsup_dist.errors import InputError
from tests.unit.data.small_tables import make_record, write_records


def test_an_image_of_two_tables_is_dropped_from_the_later_one_and_from_training(tmp_path):
    def table(name: str, images: list[bytes]) -> Table:
        return write_records(tmp_path / name, [make_record(f"{name}{i}", image=b) for i, b in enumerate(images)])

    first, second = table("first", [b"1", b"2", b"3"]), table("second", [b"4", b"2", b"5", b"4"])
    val = table("val", [b"3", b"9"])
    assert find_duplicates([first, second], val, "drop") == [frozenset({2}), frozenset({1, 3})]
    assert find_duplicates([first], table("other", [b"8"]), "refuse") == [frozenset()]
    with pytest.raises(InputError, match=r"3 images are in two tables.*first2 \(also in val_records\)"):
        find_duplicates([first, second], val, "refuse")


@pytest.mark.parametrize(
    "image_id, name",
    [
        ("voc2007/000032", "2007_000032"),
        ("voc2012/2007_000032", "2007_000032"),
        ("context/2008_000123", "2008_000123"),
        ("coco/COCO_train2014_000000000009", "000000000009"),
        ("coco/000000000009", "000000000009"),
        ("mine/000032", None),
        ("mine/photo_000000000009", None),
    ],
)
def test_editions_of_a_data_set_name_an_image_alike(image_id, name):
    assert published_name(image_id) == name


def test_the_same_photo_under_the_names_of_two_editions_is_found(tmp_path):
    old = write_records(tmp_path / "old", [make_record("voc2007/000032", image=b"1")])
    new = write_records(tmp_path / "new", [make_record("voc2012/2007_000032", image=b"re-encoded")])
    assert find_duplicates([old], new, "drop") == [frozenset({0})]
