"""Credentials in URIs: blanked out wherever they are shown, refused wherever they would be used."""

import pickle

import pytest

from boxsup_dist.credentials import has_credentials, redact
from boxsup_dist.errors import InputError, SettingError, WeightsError
from boxsup_dist.io import storage
from boxsup_dist.model.weights import absolute_spec, read_state_dict
from jobs import submit

WITH_CREDENTIALS = [
    "s3://KEY:hidden@bucket/runs",
    "s3://KEY:hid/hidden@bucket/runs",
    "http://user:hidden@mlflow:5000",
    "postgresql://mlflow:hidden@db/mlflow",
    "https://hidden@host/x.pth",
    "https://host/x.png?a=1&token=hidden",
    "https://host/x.png?X-Amz-Signature=hidden&x=1",
    "https://host/x.png?sig=hidden",
]


@pytest.mark.parametrize("uri", WITH_CREDENTIALS)
def test_credentials_are_blanked_out_and_refused(uri, monkeypatch):
    assert has_credentials(uri) and "hidden" not in redact(f"reading {uri} failed") and "***" in redact(uri)
    monkeypatch.chdir("/")
    for call in (storage.absolute, storage.read_bytes, storage.exists, storage.find_files):
        with pytest.raises(InputError, match=r"the URI holds credentials; file: .*\*\*\*") as found:
            call(uri)
        assert "hidden" not in str(found.value)
    for spec in (uri, f"checkpoint:{uri}", f"hed:{uri}", f"torchvision:IMAGENET1K_V1@{uri}"):
        with pytest.raises(InputError, match="the URI holds credentials"):
            absolute_spec(spec)
    with pytest.raises(WeightsError) as weights:
        read_state_dict(uri)
    with pytest.raises(SettingError, match="an argument holds credentials") as argument:
        submit.parse(["--", "python", "-m", "jobs.train", "mini", "--run-dir", uri])
    assert "hidden" not in str(weights.value) + str(argument.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a:b/x@2.png",
        "http://127.0.0.1:5000/a@b",
        "sqlite:////runs/a@b/mlflow.db",
        "file:///data/a@b",
        "models:/NAME@ALIAS",
        "/data/x@2.png",
        "https://host/x.png?size=2",
        "/data/x?key=1.jpg",
        "photos/x&token=2.png",
        "file:///data/x?secret=3/y",
    ],
)
def test_other_uris_are_left_alone(uri):
    assert redact(uri) == uri and not has_credentials(uri)


def test_a_local_file_may_have_any_name_and_is_shown_with_it(tmp_path):
    uri = str(tmp_path / "x?key=1&token=2.json")
    storage.write_json(uri, 3)
    assert storage.read_json(uri) == 3 and storage.list_names(str(tmp_path)) == ["x?key=1&token=2.json"]
    assert "x?key=1&token=2.json" in str(InputError("bad", file=uri, expected="another"))


def test_a_uri_beside_a_local_file_is_still_blanked_out():
    text = redact("copying file:///a?key=shown and /b?key=shown to https://host/c?key=hidden&x=1 and s3://d?sig=hidden")
    assert text.count("shown") == 2 and "hidden" not in text and text.count("***") == 2


def test_an_error_hides_credentials_in_every_part_also_after_a_process():
    uri = WITH_CREDENTIALS[0]
    error = InputError(f"can't read {uri}", file=uri, field=uri, value=[uri], expected=f"not {uri}")
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert "hidden" not in str(each) and str(each).count("s3://***@bucket/runs") == 5
