"""Errors keep what they know: when a caller adds a place, and on the way between processes."""

import pickle

import pytest

from boxsup_dist.errors import CheckpointError, InputError, RecordError, decoding


def test_a_caller_adds_the_file_and_keeps_the_rest():
    found = RecordError("too small", field="boxes", value=3, expected="4").at(file="a.mat")
    assert type(found) is RecordError
    assert str(found) == "too small; file: a.mat; field: boxes; found: 3; expected: 4"
    assert str(found.at(file="b.mat", field="object 2, boxes")).startswith(
        "too small; file: b.mat; field: object 2, boxes;"
    )


def test_a_caller_changes_class_and_problem():
    found = InputError("no", file="x", value=0).at(problem="cannot compare: no", kind=CheckpointError)
    assert type(found) is CheckpointError
    assert str(found) == "cannot compare: no; file: x; found: 0"


def test_an_error_with_its_place_survives_pickling():
    found = RecordError("bad", field="f", value=[1], expected="2").at(file="s3://key:secret@bucket/x")
    again = pickle.loads(pickle.dumps(found))
    assert type(again) is RecordError and str(again) == str(found)
    assert (again.file, again.field, again.value, again.expected) == (found.file, "f", [1], "2")
    assert "secret" not in str(again)


def test_a_value_of_megabytes_is_cut_in_the_text_only():
    found = InputError("bad", file="f", value=[10**300] * 100_000, expected="2")
    assert (
        len(str(found)) < 600
        and str(found).startswith("bad; file: f; found: [1000")
        and "...; expected: 2" in str(found)
    )
    assert len(found.value) == 100_000


@pytest.mark.parametrize("error", [OSError("broken data"), SyntaxError("broken PNG")])
def test_damaged_bytes_name_their_image(error):
    expected = r"does not decode: broken .*; file: t; field: image_id; found: 'voc/1'"
    with pytest.raises(RecordError, match=expected), decoding("voc/1", "t"):
        raise error
