"""`rlaif ui` in a real browser over a finished home: a person clicks "Materialize all", looks at what came of it, and
follows the links to MLflow and to the policy's report."""

import base64
import json
import shutil
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import yaml
from playwright.sync_api import Locator, Page, expect, sync_playwright

from rlaif_assets.assets.configuration import CONFIGS
from rlaif_assets.pipeline import REPOSITORY
from rlaif_assets.store.pictures import kept_pictures
from tests.homes import Home, start_command
from tests.test_ui import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 120
LOADED = "image => image.decode().then(() => image.naturalWidth)"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")


@dataclass(frozen=True)
class Ui:
    """Both user interfaces, what they are shown to, and the run that a click on "Materialize all" started."""

    dagster: str
    mlflow: str
    home: Path
    page: Page
    run_id: str


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 2400, "height": 1600})
        page.set_default_timeout(SECONDS * 1000)
        expect.set_options(timeout=SECONDS * 1000)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def ui(home: Home, page: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """`rlaif ui` over a copy of the shared home; in the end Ctrl-C, after which nothing that it started is left."""
    folder = tmp_path_factory.mktemp("browser") / "home"
    shutil.copytree(home.pristine, folder)
    settings, port, mlflow_port = folder.parent / "profile.yaml", free_port(), free_port()
    settings.write_text(yaml.safe_dump(home.profile.model_dump()))
    dagster, mlflow = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{mlflow_port}"
    words = ("--home", str(folder), "--profile", str(settings), "--set", f"tracking.ui_url={mlflow}")
    command = start_command("ui", *words, "--port", str(port))
    assert command.stdout is not None
    try:
        told: list[str] = []
        for line in command.stdout:
            told.append(line)
            if "Ctrl-C" in line:
                break
        assert f"Dagster  {dagster}" in "".join(told), "".join(told)
        yield Ui(dagster, mlflow, folder, page, materialize_all(page, dagster))
    finally:
        started = psutil.Process(command.pid).children(recursive=True)
        command.send_signal(signal.SIGINT)
        try:
            command.communicate(timeout=60)
        finally:
            command.kill()
            left = psutil.wait_procs(started, timeout=30)[1]
            for process in left:
                process.kill()
    assert command.returncode == 130 and started and not left


def materialize_all(page: Page, dagster: str) -> str:
    """Clicks, and returns the run's id when its page tells that it succeeded."""
    page.goto(f"{dagster}/locations/{REPOSITORY}/jobs/rlaif_all")
    expect(page.get_by_text(f"View {len(CONFIGS)} assets")).to_be_visible()
    page.get_by_role("button", name="Materialize all").click()
    page.get_by_role("link", name="View", exact=True).click()
    page.wait_for_url("**/runs/*")
    expect(page.get_by_text("Success", exact=True)).to_be_visible()
    return urlsplit(page.url).path.rpartition("/")[2]


def test_materialize_all_by_a_click_reuses_everything(ui: Ui) -> None:
    query = f'{{ runOrError(runId: "{ui.run_id}") {{ ... on Run {{ status assetMaterializations {{ assetKey {{ path }}'
    query += " metadataEntries { label ... on BoolMetadataEntry { boolValue } } } } } }"
    run = graphql(ui.dagster, query)["runOrError"]
    reused = {
        made["assetKey"]["path"][0]: entry["boolValue"]
        for made in run["assetMaterializations"]
        for entry in made["metadataEntries"]
        if entry["label"] == "reused"
    }
    assert run["status"] == "SUCCESS" and reused == dict.fromkeys(CONFIGS, True)


def test_the_graph_shows_every_step(ui: Ui) -> None:
    ui.page.goto(f"{ui.dagster}/locations/{REPOSITORY}/jobs/rlaif_all")
    for group in ("step_0_sources", "step_1_revisions", "step_2_sl_cai"):
        expect(ui.page.get_by_text(group, exact=True).first).to_be_visible()


def test_an_asset_page_shows_its_picture_and_leads_to_mlflow_and_the_report(home: Home, ui: Ui) -> None:
    evaluation = home.warehouse.get(home.first["policy_evaluation"])
    page = ui.page
    page.goto(f"{ui.dagster}/assets/policy_evaluation")
    expect(row(page, "harmless_rate")).to_be_visible()
    source = page.get_by_role("link", name="in editor").get_attribute("href")
    assert source is not None and "/rlaif_assets/assets/evaluation.py:" in source
    row(page, "rates").get_by_text("Show Markdown").click()
    picture = page.get_by_alt_text("rates")
    assert picture.evaluate(LOADED) == 990
    encoded = base64.b64encode(kept_pictures(ui.home, evaluation.snapshot_id)["rates"]).decode()
    assert picture.get_attribute("src") == f"data:image/png;base64,{encoded}"
    page.keyboard.press("Escape")
    expect(picture).to_have_count(0)

    with page.context.expect_page() as opened:
        row(page, "mlflow").get_by_role("link").first.click()
    run = opened.value
    expect(run.get_by_role("heading", name="policy_evaluation")).to_be_visible()
    assert run.url == f"{ui.mlflow}/#/experiments/1/runs/{evaluation.mlflow_run_id}"
    expect(run.get_by_text("rlaif trace", exact=False).first).to_be_visible()
    expect(run.get_by_role("link", name="asset policy_evaluation")).to_be_visible()
    run.get_by_role("tab", name="Artifacts").click()
    run.get_by_text("report.html").click()
    expect(run.frame_locator("iframe").get_by_text("harmless rate").first).to_be_visible()
    run.close()


def row(page: Page, key: str) -> Locator:
    """The line of the asset page's metadata that has this key."""
    return page.get_by_role("row").filter(has=page.get_by_text(key, exact=True)).first


def graphql(dagster: str, query: str) -> dict[str, Any]:
    body = json.dumps({"query": query}).encode()
    request = urllib.request.Request(f"{dagster}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)["data"]
