"""The asset champion_policy and `rlaif promote`, on a copy of the shared home with answers written by hand."""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlaif_assets.assets.recording import Stage
from rlaif_assets.cli import app
from rlaif_assets.store import registry
from rlaif_assets.store.model_places import PLACES
from rlaif_assets.store.tracking import Tracker
from rlaif_assets.store.warehouse import SnapshotRecord, snapshot_key
from tests.homes import Home, failure, metadata

NAME = registry.POLICY


def keyed(record: SnapshotRecord, settings: dict[str, Any]) -> SnapshotRecord:
    """The record as it would be under these settings."""
    key = snapshot_key(record.asset, record.inputs, settings, record.code_version)
    return replace(record, key=key, settings=settings)


class Policies(Home):
    """A copy of the home in which versions of the policy and what they answered can be written."""

    def current(self, asset: str) -> SnapshotRecord:
        found = self.warehouse.current(asset)
        assert found is not None
        return found

    def publish(self, record: SnapshotRecord, tables: dict[str, list[dict[str, Any]]]) -> SnapshotRecord:
        made = self.warehouse.publish(record, tables)
        self.warehouse.record_materialization(made.snapshot_id, "test", False)
        return made

    def add(self, harmless: int, seed: int | None = None) -> SnapshotRecord:
        """A policy (`seed` None: the one that is there) and its evaluation: it is harmless on the first so many of 40
        prompts; SL-CAI on the first 20. Both are helpful."""
        policy = self.current("ppo_policy")
        if seed is not None:
            settings = {**policy.settings, "seed": seed}
            rows = self.warehouse.rows("rollouts", policy.snapshot_id)
            own = [{k: v for k, v in row.items() if k not in ("snapshot_id", "position")} for row in rows]
            policy = self.publish(keyed(policy, settings), {"rollouts": own})
            model = str(policy.metrics["mlflow_model_id"])
            number = int(tracker(self.folder).register(model, NAME, policy.snapshot_id))
            version = registry.add_version(self.warehouse, NAME, policy.snapshot_id, number)
            registry.set_alias(self.warehouse, NAME, "candidate", version, "test", "test")
        old = self.current("policy_evaluation")
        inputs = {**old.inputs, "ppo_policy": policy.snapshot_id}
        rates = self.tables(old)["evaluation_rates"]
        made = keyed(replace(old, inputs=inputs), {**old.settings, "seed": harmless})
        answers = [*written("ppo", harmless), *written("sl_cai", 20)]
        self.publish(made, {"evaluation_rates": rates, "evaluation_answers": answers})
        return policy

    def tables(self, evaluation: SnapshotRecord) -> dict[str, list[dict[str, Any]]]:
        return {
            table: [
                {k: v for k, v in row.items() if k not in ("snapshot_id", "position")}
                for row in self.warehouse.rows(table, evaluation.snapshot_id)
            ]
            for table in ("evaluation_rates", "evaluation_answers")
        }

    def decide(self, *overrides: str, force: bool = False) -> dict[str, Any]:
        tags = {"rlaif/force": "champion_policy"} if force else None
        result = self.run(["champion_policy"], *overrides, tags=tags)
        assert result.success, failure(result)
        return metadata(result)["champion_policy"]

    @property
    def champion(self) -> int | None:
        named = registry.named(self.warehouse, NAME, registry.CHAMPION)
        told = tracker(self.folder).client.get_registered_model(NAME).aliases.get("champion")
        assert str(named and named.version) == str(told)
        return named and named.version


def written(policy: str, harmless: int) -> list[dict[str, Any]]:
    common: dict[str, Any] = {"policy": policy, "split": "dev", "sample": 0, "tokens": 10, "kl": 0.1, "seed": 0}
    rows = []
    for kind in ("harmful", "harmless", "lookalike"):
        for i in range(40):
            verdict = "engaged" if kind != "harmful" or i < harmless else "harmful"
            own = {"answer_id": f"{policy}-{kind}-{i}", "prompt_id": f"{kind}-{i}", "kind": kind, "intent": f"{i}"}
            rows.append({**common, **own, "text": f"{verdict} {i}", "verdict": verdict})
    return rows


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def tracker(folder: Path) -> Tracker:
    return Tracker(None, folder, "rlaif", "http://127.0.0.1:5000")


@pytest.fixture
def policies(home: Home, model: Path, tmp_path: Path) -> Policies:
    shutil.copytree(home.pristine, tmp_path / "home")
    return Policies(tmp_path / "home", model)


def test_a_candidate_that_is_not_better_is_refused_and_the_run_succeeds(policies: Policies) -> None:
    record = policies.current("champion_policy")
    assert record.metrics["promoted"] is False  # the random policy of the shared home
    assert record.metrics["compared_with"] == "SL-CAI" and record.metrics["champion"] is None
    assert any(reason.startswith("better: than SL-CAI") for reason in record.metrics["reasons"])
    assert registry.named(policies.warehouse, NAME, registry.CHAMPION) is None


def test_promotion_from_the_first_candidate_on(policies: Policies) -> None:
    policies.add(36)
    told = policies.decide()
    assert told["promoted"] is True and told["reused"] is False and policies.champion == 1
    assert told["decision"].startswith("promoted on ") and "compared with SL-CAI" in told["decision"]
    again = policies.decide()
    assert again["promoted"] is True and again["reused"] is True
    assert len(registry.moves(policies.warehouse, NAME)) == 2  # candidate and champion, once each

    policies.add(37, seed=1)  # 1 of 40 more: chance
    told = policies.decide()
    assert told["promoted"] is False and policies.champion == 1
    assert "compared with rlaif-policy/1" in told["decision"] and "- better: than rlaif-policy/1" in told["decision"]
    assert policies.current("champion_policy").metrics["champion"] == "rlaif-policy/1"

    policies.add(8, seed=2)
    policies.decide()
    policies.add(40, seed=3)  # all four that the champion gets wrong
    told = policies.decide()
    assert told["promoted"] is True and policies.champion == 4, told["decision"]

    # By hand, and what was decided once is not decided again until it is asked for.
    done = CliRunner().invoke(
        app, ["promote", "--to", "1", "--why", "4 is rude", "--home", str(policies.folder), "--json"]
    )
    assert done.exit_code == 0, done.output
    move = json.loads(done.stdout)["moves"][-1]
    assert (move["alias"], move["version"], move["why"]) == ("champion", 1, "4 is rude") and move["who"]
    assert policies.champion == 1
    assert policies.decide()["reused"] is True and policies.champion == 1
    assert policies.decide(force=True)["promoted"] is True and policies.champion == 4
    assert policies.decide(force=True)["promoted"] is True  # champion already: held against the one before it
    assert policies.current("champion_policy").metrics["compared_with"] == "rlaif-policy/1"


def test_a_damaged_ancestor_or_other_evaluation_settings_refuse(policies: Policies, model: Path) -> None:
    policies.add(36)
    places = list((policies.folder / PLACES).iterdir())
    other = shutil.copytree(model, policies.folder.with_name("other"))
    flip_a_byte(other / "model.safetensors")
    for place in places:
        place.write_text(str(other))
    told = policies.decide()
    assert told["promoted"] is False and "is not the one that was used" in told["decision"]
    for place in places:
        place.write_text(str(model))

    path = policies.current("sl_cai_checkpoint").path
    assert path is not None
    weights = policies.folder / path / "model.safetensors"
    flip_a_byte(weights)
    told = policies.decide(force=True)
    assert told["promoted"] is False and "lineage: not as it was published: sl_cai_checkpoint" in told["decision"]
    flip_a_byte(weights)
    assert policies.decide(force=True)["promoted"] is True

    wanted = policies.current("policy_evaluation").inputs
    sl_cai = policies.warehouse.get(wanted["sl_cai_checkpoint"])
    lost = sl_cai.inputs["revised_responses"]
    with policies.warehouse.connection(read_only=False) as connection:
        connection.execute("CREATE TABLE aside AS SELECT * FROM snapshots WHERE snapshot_id = ?", [lost])
        connection.execute("DELETE FROM snapshots WHERE snapshot_id = ?", [lost])
    told = policies.decide(force=True)
    missing = f"sl_cai_checkpoint {sl_cai.snapshot_id}: the record of its revised_responses {lost} is missing"
    assert told["promoted"] is False and f"lineage: not as it was published: {missing}" in told["decision"]
    with policies.warehouse.connection(read_only=False) as connection:
        connection.execute("INSERT INTO snapshots SELECT * FROM aside")
        connection.execute("DROP TABLE aside")

    # The champion's own evaluation counts among what must be as it was published.
    policies.add(40, seed=1)
    with policies.warehouse.connection(read_only=False) as connection:
        connection.execute(
            "UPDATE evaluation_answers SET verdict = 'harmful' WHERE verdict = 'engaged' AND kind = 'harmful'"
        )
    told = policies.decide()
    assert told["promoted"] is False and "lineage: not as it was published: policy_evaluation" in told["decision"]


def test_the_champion_is_compared_as_the_candidate_was_evaluated(policies: Policies) -> None:
    policies.add(36)
    assert policies.decide()["promoted"] is True
    own = policies.current("policy_evaluation")
    colder = {**own.settings, "temperature": 0.5}
    policies.publish(keyed(own, colder), policies.tables(own))  # its newest one
    policies.add(40, seed=1)
    candidate = policies.current("policy_evaluation")
    assert candidate.settings["temperature"] == 0.5 and policies.decide()["promoted"] is True
    policies.add(40, seed=2)
    other = policies.current("policy_evaluation")
    hotter = {**other.settings, "temperature": 0.9}
    policies.publish(keyed(other, hotter), policies.tables(other))
    told = policies.decide()
    assert told["promoted"] is False
    assert "rlaif-policy/2 (never evaluated with samples=1, temperature=0.9, max_new_tokens=6" in told["decision"]


def test_a_version_never_becomes_another_policy(policies: Policies, tmp_path: Path) -> None:
    """Another database of MLflow counts from 1 again."""
    other = f"tracking.uri=sqlite:///{tmp_path / 'other.db'}"
    first = policies.add(36)
    assert policies.decide()["promoted"] is True
    result = policies.run(["ppo_policy"], "ppo_policy.seed=5", other)
    assert result.success, failure(result)
    second = policies.current("ppo_policy")
    known = {one.version: one for one in registry.versions(policies.warehouse, NAME)}
    assert {number: one.snapshot_id for number, one in known.items()} == {1: first.snapshot_id, 2: second.snapshot_id}
    assert known[1].aliases == ("champion",) and known[2].aliases == ("candidate",)
    assert known[2].mlflow_version == 1
    policies.add(40)  # better than 36 of 40
    told = policies.decide(other)
    assert told["promoted"] is True and "compared with rlaif-policy/1" in told["decision"]
    there = Tracker(f"sqlite:///{tmp_path / 'other.db'}", policies.folder, "rlaif", "http://127.0.0.1:5000")
    aliases = there.client.get_registered_model(NAME).aliases
    assert {alias: str(number) for alias, number in aliases.items()} == {"candidate": "1", "champion": "1"}


def test_mlflows_champion_is_never_another_policy(policies: Policies, tmp_path: Path) -> None:
    """In another database of MLflow the numbers of the old one name other snapshots, or none."""
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    other = f"tracking.uri={uri}"
    first = policies.add(36)
    policies.add(36, seed=1)
    result = policies.run(["ppo_policy"], "ppo_policy.seed=5", other)
    assert result.success, failure(result)
    known = {one.version: one for one in registry.versions(policies.warehouse, NAME)}
    assert {number: one.mlflow_version for number, one in known.items()} == {1: 1, 2: 2, 3: 1}
    there = Tracker(uri, policies.folder, "rlaif", "http://127.0.0.1:5000")

    def promote(version: int) -> str:
        words = ["promote", "--to", str(version), "--home", str(policies.folder), "--set", other]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        named = registry.named(policies.warehouse, NAME, registry.CHAMPION)
        assert named is not None and named.version == version
        return done.stderr

    assert promote(3) == "" and there.aliased(NAME)["champion"] == known[3].snapshot_id
    for version in (1, 2):
        told = f"MLflow has no version that is {NAME}/{version} (snapshot {known[version].snapshot_id})"
        assert told in promote(version)
        assert there.aliased(NAME) == {"candidate": known[3].snapshot_id}
        assert promote(3) == "" and "champion" in there.aliased(NAME)

    # The asset does the same: a candidate that MLflow was never told of.
    policies.warehouse.record_materialization(first.snapshot_id, "test", True)
    policies.add(40)
    with policies.warehouse.connection(read_only=False) as connection:
        connection.execute("DELETE FROM aliases WHERE alias = 'champion'")
    assert "champion" in there.aliased(NAME) and policies.decide(other)["promoted"] is True
    named = registry.named(policies.warehouse, NAME, registry.CHAMPION)
    assert named is not None and named.snapshot_id == first.snapshot_id
    assert there.aliased(NAME) == {"candidate": known[3].snapshot_id}


def test_a_policy_that_was_made_without_mlflow_is_registered_in_the_home_and_later_there(policies: Policies) -> None:
    away = policies.run(["ppo_policy"], "ppo_policy.seed=5", "tracking.uri=http://127.0.0.1:9")
    assert away.success, failure(away)
    version = registry.named(policies.warehouse, NAME, "candidate")
    assert version is not None and (version.version, version.mlflow_version) == (2, None)
    policies.add(36)
    assert policies.decide("tracking.uri=http://127.0.0.1:9")["promoted"] is True
    back = policies.run(["ppo_policy"], "ppo_policy.seed=5")
    assert back.success and metadata(back)["ppo_policy"]["reused"]
    version = registry.named(policies.warehouse, NAME, registry.CHAMPION)
    assert version is not None and (version.version, version.mlflow_version) == (2, 2)
    assert str(tracker(policies.folder).client.get_registered_model(NAME).aliases["candidate"]) == "2"


def test_a_policy_that_mlflow_has_lost_is_told_again_at_its_reuse(policies: Policies) -> None:
    record = policies.current("ppo_policy")
    tables = ("registered_model_aliases", "model_version_tags", "model_versions", "registered_models", "inputs", "runs")
    with closing(sqlite3.connect(policies.folder / "mlflow.db")) as connection, connection:
        for table in tables:
            connection.execute(f"DELETE FROM {table}")
    assert tracker(policies.folder).registered(NAME) == {}
    again = policies.run(["ppo_policy"])
    assert again.success and metadata(again)["ppo_policy"]["reused"], failure(again)
    assert tracker(policies.folder).registered(NAME) == {1: record.snapshot_id}
    assert tracker(policies.folder).aliased(NAME) == {"candidate": record.snapshot_id}

    def runs() -> int:
        client = tracker(policies.folder).client
        return len(client.search_runs([one.experiment_id for one in client.search_experiments()]))

    before = runs()
    assert before == 1 and policies.run(["ppo_policy"]).success and runs() == before  # once


def test_a_kill_between_alias_and_record(policies: Policies, monkeypatch: pytest.MonkeyPatch) -> None:
    policies.add(36)
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "_publish", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        assert not policies.run(["champion_policy"]).success
    assert policies.champion == 1
    told = policies.decide()
    assert told["promoted"] is True and "compared with SL-CAI" in told["decision"]
    assert len(registry.moves(policies.warehouse, NAME)) == 2


def test_what_cannot_be_promoted_by_hand(policies: Policies) -> None:
    def promote(*words: str) -> Any:
        return CliRunner().invoke(app, ["promote", *words, "--home", str(policies.folder)])

    missing = promote("--to", "7")
    assert missing.exit_code == 1 and "has no rlaif-policy/7: there are the versions 1" in missing.stderr
    path = policies.current("ppo_policy").path
    shutil.rmtree(policies.folder / str(path))
    gone = promote("--to", "1")
    assert gone.exit_code == 1 and "checkpoints/ppo_policy" in gone.stderr
    assert policies.champion is None
    listed = promote()
    assert listed.exit_code == 0 and "rlaif-policy/1 @candidate" in listed.stdout


def test_a_promotion_without_mlflow_is_kept_in_the_home(policies: Policies) -> None:
    done = CliRunner().invoke(
        app, ["promote", "--to", "1", "--home", str(policies.folder), "--set", "tracking.uri=http://127.0.0.1:9"]
    )
    assert done.exit_code == 0 and "recorded in the home; MLflow was not told" in done.stderr
    named = registry.named(policies.warehouse, NAME, registry.CHAMPION)
    assert named is not None and named.version == 1
    (policies.folder / "mlflow.db").unlink()
    lost = CliRunner().invoke(app, ["promote", "--to", "1", "--home", str(policies.folder)])
    assert lost.exit_code == 0 and "mlflow.db is missing" in lost.stderr
    assert not (policies.folder / "mlflow.db").exists()
