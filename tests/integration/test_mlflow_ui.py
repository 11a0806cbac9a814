"""What a person sees in MLflow's pages of a finished run, read by a real browser from a real server."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from boxsup_dist.config import OptimizerSettings
from boxsup_dist.runs.train import train
from jobs import gallery
from jobs.drill.mlflow_server import WAIT_S, Server
from tests.distributed import tiny

WINDOW = (1600, 1400)
PAGE_S = 20  # of the browser's own time, which does not pass while it waits for the server
TRIES = 3
FRAME_TRIES = 10


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium on the PATH (Debian: apt-get install chromium)")
    return found


@pytest.fixture(scope="module")
def server(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def finished(server: Server, ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Summary of a box-supervised training that logged to the server."""
    folder = tmp_path_factory.mktemp("ui")
    tiny.write_tables(folder)
    config = tiny.make_config(folder, folder / "seen-in-the-browser")
    config = replace(config, optimizer=OptimizerSettings(epochs=1, global_batch_size=4, lr=0.01))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        return train(config)


class Browser:
    """Headless Chromium with a profile of its own."""

    def __init__(self, binary: str, profile: Path) -> None:
        self.binary, self.profile = binary, profile
        self.shot = profile / "screenshot.png"  # of the page whose text was asked for last

    def text(self, url: str, wanted: list[str]) -> str:
        """Visible text of a page once its scripts have drawn `wanted`; what there is after some tries."""
        found = ""
        for _ in range(TRIES):
            found = self._text(url)
            if all(text in found for text in wanted):
                break
            time.sleep(1)
        return found

    def _text(self, url: str) -> str:
        command = [self.binary, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={self.profile}", f"--window-size={WINDOW[0]},{WINDOW[1]}"]
        command += [f"--virtual-time-budget={1000 * PAGE_S}", f"--screenshot={self.shot}", "--dump-dom", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
        assert done.returncode == 0, done.stderr[-2000:]
        page = re.sub(r"<(script|style)\b.*?</\1>", " ", done.stdout, flags=re.DOTALL)
        return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def assert_drawn(shot: Path) -> None:
    """The screenshot is of the window, and no blank or plain page: text and pictures have many colours."""
    with Image.open(shot) as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=2**24)
        assert picture.size == WINDOW
    assert colours is not None and len(colours) > 50, "an empty page"


@pytest.fixture(scope="module")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return Browser(chromium, tmp_path_factory.mktemp("profile"))


def run_url(server: Server, run_id: str) -> str:
    from mlflow.tracking import MlflowClient

    experiment_id = MlflowClient(server.uri).get_run(run_id).info.experiment_id
    return f"{server.uri}/#/experiments/{experiment_id}/runs/{run_id}"


@pytest.mark.parametrize(
    "page, wanted",
    [
        ("", ["seen-in-the-browser", "Finished", "mean_iou", "train_loss", "optimizer.lr", "0.01", "run_dir"]),
        ("/artifacts", ["report.html", "figures", "config.json", "summary.json"]),
        ("/artifacts/figures", ["worst-1-tiny"]),
    ],
    ids=["overview", "artifacts", "figures"],
)
def test_a_finished_run_is_all_there(
    server: Server, finished: dict[str, Any], browser: Browser, page: str, wanted: list[str]
) -> None:
    text = browser.text(run_url(server, finished["mlflow"]["run_id"]) + page, wanted)
    assert [part for part in wanted if part not in text] == [], text[:3000]
    assert_drawn(browser.shot)


def test_the_report_is_a_page_by_itself(finished: dict[str, Any], browser: Browser) -> None:
    report = Path(finished["checkpoint"]).parents[1] / "report.html"
    wanted = ["seen-in-the-browser", "mean IoU", "IoU by class", "Which classes are confused", "Data", "Configuration"]
    text = browser.text(report.as_uri(), wanted)
    assert [part for part in wanted if part not in text] == [], text[:3000]
    assert_drawn(browser.shot)


def test_the_gallery_opens_from_its_folder_and_among_the_artifacts(
    server: Server, finished: dict[str, Any], browser: Browser, tmp_path: Path
) -> None:
    run_dir = str(Path(finished["checkpoint"]).parents[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        gallery.main(gallery.Settings(run_dir, str(tmp_path), log=True))
    page = (tmp_path / "index.html").as_uri()
    boxes = browser.text(page, ["Suspicious boxes", "page 1 of 1", "doubt"])
    assert "the network" in boxes or "no strong sign" in boxes
    assert_drawn(browser.shot)
    images = browser.text(f"{page}#images", ["tiny/train_00", "tiny/val_00", "overlap cost"])
    assert "19 found, page 1 of 1" in images
    large = browser.text(f"{page}#image=tiny/train_00", ["label map, epoch 1", "ground truth", "previous"])
    assert "label map, epoch 1" in large and "ground truth" in large
    # The page lies in a frame of its own there; that it found its pictures is seen at the server. The browser's own
    # time may end before the frame has asked for them, so the page is opened until it has.
    picture = re.compile(r"GET /get-artifact\?path=gallery%2Fboxes%2F0000.webp\S* HTTP/1.1\" 200")
    among_artifacts = run_url(server, finished["mlflow"]["run_id"]) + "/artifacts/gallery/index.html"
    for _ in range(FRAME_TRIES):
        browser.text(among_artifacts, ["gallery"])
        if picture.search(log := (server.folder / "server.log").read_text()):
            break
    else:
        pytest.fail(f"the picture was never asked for: {log[-3000:]}")
    assert_drawn(browser.shot)
