"""`rlaif audit`: any file of labelled pairs, the packaged judge, a table or JSON, and an exit code for scripts."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rlaif_assets.cli import app
from rlaif_assets.feedback.limits import RULES
from rlaif_assets.ingest.labelled_pairs import read_labelled_pairs
from tests.chat_server import MODEL, Answer, ChatServer, Plan, completion, letters, text_of

SHARED = Path(__file__).parents[3] / "shared" / "data" / "hh-rlhf-harmless-base-test.jsonl.gz"
ON_CPU = ("--set", "compute.device=cpu", "--set", "compute.threads=1")


def audit(*words: str) -> Result:
    """In the test's own home, by DAGSTER_HOME."""
    return CliRunner().invoke(app, ["audit", *ON_CPU, *words], env={"COLUMNS": "200"})


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 of the pocket world's pairs in the layout input, output_1, output_2, label, and a row that is refused."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {
            "input": row.messages[-1]["content"],
            "output_1": row.response_a,
            "output_2": row.response_b,
            "label": 1 if row.p_a == 1 else 2,
        }
        for row in read_labelled_pairs("pocket", 40)[0]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "label": 9}]))
    return path


def test_a_judge_that_knows_the_world_passes_and_its_passport_is_printed(written: Path) -> None:
    result = audit("--pairs", str(written), "--json", "--set", "audits.probe_pairs=12")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["passed"] and report["pairs"] == {"read": 41, "refused": 1, "pairs": 40, "judged": 40}
    assert [row["audit"] for row in report["audits"]] == list(RULES)
    assert report["reference"]["decided"] == 40 and report["reference"]["agreement"] > 0.6
    assert report["model"]["source"] == "pocket" and report["model"]["parameters"] > 0
    assert len(report["passport_id"]) == 32 and report["settings"]["few_shot"] == 0
    assert [row["where"] for row in report["rejected"]] == ["pairs.jsonl:41"]


def test_a_blocking_failure_closes_the_gate_and_an_override_opens_it(written: Path) -> None:
    words = ("--pairs", str(written), "--limit", "8", "--judge", "pocket", "--set", "audits.probe_pairs=2")
    closed = audit(*words)
    assert closed.exit_code == 1 and "Traceback" not in closed.output
    assert "The gate is closed" in closed.output and "enough_pairs (8, limit 20 by audits.min_pairs)" in closed.output
    assert RULES["enough_pairs"].advice in closed.output
    assert audit(*words, "--set", "audits.enforce=false").exit_code == 0
    opened = audit(
        *words, "--set", "audits.min_pairs=5", *("--set", "audits.min_turned=0.2", "--set", "audits.max_flip_rate=0.9")
    )
    assert opened.exit_code == 0 and "The gate is open" in opened.output


@pytest.mark.parametrize("form", ["a plain reply", "reasons first"])
def test_an_endpoint_is_audited_like_any_judge(written: Path, serve: Callable[[Plan], ChatServer], form: str) -> None:
    def plan(n: int, body: Mapping[str, Any]) -> Answer:
        return Answer(completion("Both are short.")) if "Do not choose yet" in text_of(body) else letters(0.7)

    server, reasons = serve(plan), str(form == "reasons first").lower()
    result = audit(
        "--pairs", str(written), "--limit", "8", "--json", "--judge", f"{server.url}@{MODEL}",
        "--set", f"harmlessness_preferences.chain_of_thought={reasons}", "--set", "audits.probe_pairs=2",
    )  # fmt: skip
    assert result.exit_code == 1, result.output  # it always prefers (A), whatever stands there
    report = json.loads(result.stdout)
    flips = next(row for row in report["audits"] if row["audit"] == "position_flip_rate")
    assert flips["value"] == 1.0 and not flips["passed"]
    assert (report["model"]["source"], report["model"]["model"]) == (server.url, MODEL)
    assert any("Do not choose yet" in text_of(body) for body in server.requests) == (form == "reasons first")


def test_an_endpoint_that_stops_is_one_message_and_what_was_paid_for_is_kept(
    written: Path, serve: Callable[[Plan], ChatServer], tmp_path: Path
) -> None:
    server = serve(lambda n, body: letters(0.7))
    words = ("--pairs", str(written), "--limit", "8", "--judge", f"{server.url}@{MODEL}", "--home", str(tmp_path / "x"))
    spent = audit(*words, "--set", "compute.endpoint_max_calls=5")
    assert spent.exit_code == 1 and "endpoint_max_calls" in spent.output and "Traceback" not in spent.output
    assert "5 judgements of this run are kept and 11 are left" in spent.output
    report = json.loads(audit(*words, "--json").stdout)
    assert (report["judging"]["reused"], report["judging"]["computed"]) == (5, 11)
    asked = len(server.requests)
    again = audit(*words)
    assert "(0 judgements made, 64 reused, those of the audits among them)" in " ".join(again.output.split())
    assert len(server.requests) <= asked + 2  # what tests the endpoint
    nameless = audit("--pairs", str(written), "--judge", server.url)
    assert nameless.exit_code == 1 and "feedback_model.model" in nameless.output


def test_what_is_wrong_is_one_message(written: Path, tmp_path: Path) -> None:
    missing = audit("--pairs", "absent.jsonl")
    assert missing.exit_code == 1 and "no such file" in missing.output
    nobody = audit("--pairs", str(written), "--judge", str(tmp_path / "nobody"))
    assert nobody.exit_code == 1 and "nobody" in nobody.output and "Traceback" not in nobody.output
    assert audit("--pairs", str(written), "--set", "audits.min_pair=3").exit_code == 2


@pytest.mark.skipif(not SHARED.is_file(), reason=f"needs ../shared/data/{SHARED.name}, which is not here")
def test_the_pocket_judge_does_badly_on_what_people_wrote_and_the_gate_closes() -> None:
    result = audit("--pairs", str(SHARED), "--limit", "60", "--json", "--set", "audits.probe_pairs=16")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    failed = {row["audit"] for row in report["audits"] if row["blocks"] and not row["passed"]}
    assert not report["passed"] and failed & {"position_flip_rate", "counter_principle"}
    low, high = report["reference"]["interval"]
    assert low < 0.5 < high  # no better than a coin
    assert report["pairs"]["read"] == 60
