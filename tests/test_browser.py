"""Dagster's UI in a real browser over a finished home: what a person sees, and that 'Materialize all' reuses it."""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from rlaif_assets import ui
from rlaif_assets.assets.configuration import CONFIGS
from rlaif_assets.instance import prepare_home
from rlaif_assets.pipeline import REPOSITORY, run_pipeline
from tests.homes import Home
from tests.test_ui import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 120
LAUNCH = """
mutation { launchRun(executionParams: {mode: "default", runConfigData: "{}", selector: {
  repositoryLocationName: "rlaif_assets.definitions", repositoryName: "__repository__", jobName: "rlaif_all"
}}) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")


@dataclass(frozen=True)
class Ui:
    url: str
    instance: dg.DagsterInstance
    first_run: str

    @property
    def job(self) -> str:
        return f"{self.url}/locations/{REPOSITORY}/jobs/rlaif_all"


@pytest.fixture(scope="module")
def shown(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """A copy of the shared home with one run of the job in Dagster's own storage, and `dagster dev` over it."""
    folder = tmp_path_factory.mktemp("browser") / "home"
    shutil.copytree(home.folder, folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DAGSTER_HOME", "RLAIF_PROFILE"):
            patch.setenv(name, os.environ.get(name, ""))  # put back in the end
        prepare_home(folder)
        ui.use_settings(folder, home.profile)
        port = free_port()
        with dg.DagsterInstance.get() as instance:
            first = run_pipeline(instance, home.profile, show=lambda _: None)
            child = subprocess.Popen(ui.dagster_command(port), start_new_session=True)
            try:
                wait_for_answer(f"http://{ui.HOST}:{port}/server_info", child)
                yield Ui(f"http://{ui.HOST}:{port}", instance, first)
            finally:
                ui.stop([child])


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 2400, "height": 1600})
        page.set_default_timeout(SECONDS * 1000)
        expect.set_options(timeout=SECONDS * 1000)
        yield page
        browser.close()


def wait_for_answer(url: str, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no answer from {url}")


def graphql(url: str, query: str) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)["data"]


def test_the_graph_shows_every_asset_materialized_under_the_named_job(shown: Ui, page: Page) -> None:
    page.goto(shown.job)
    expect(page.get_by_text(f"View {len(CONFIGS)} assets")).to_be_visible()
    for group in ("sources", "step_1_revisions", "step_2_sl_cai"):
        expect(page.get_by_text(group, exact=True).first).to_be_visible()
    page.goto(f"{shown.url}/assets/ppo_policy")
    expect(page.get_by_text("Latest materialization").first).to_be_visible()
    page.goto(f"{shown.job}/runs")
    expect(page.get_by_text(shown.first_run[:8]).first).to_be_visible()
    nodes = graphql(shown.url, "{ assetNodes { assetKey { path } assetMaterializations(limit: 1) { runId } } }")
    made = {node["assetKey"]["path"][0] for node in nodes["assetNodes"] if node["assetMaterializations"]}
    assert made == set(CONFIGS)


def test_materialize_all_reuses_everything(shown: Ui) -> None:
    launched = graphql(shown.url, LAUNCH)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run_id = launched["run"]["runId"]
    deadline = time.monotonic() + SECONDS
    while (run := shown.instance.get_run_by_id(run_id)) and not run.is_finished and time.monotonic() < deadline:
        time.sleep(1)
    assert run is not None and run.is_success, run and run.status
    reused = {
        event.asset_key.to_user_string(): event.step_materialization_data.materialization.metadata["reused"].value
        for entry in shown.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        if (event := entry.dagster_event) and event.asset_key
    }
    assert reused == dict.fromkeys(CONFIGS, True)
