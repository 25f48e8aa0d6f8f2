"""What a policy was made from, where rows came from, and what a principle reached; and the command that tells it."""

import json
import re
import shutil
import sqlite3
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

import rlaif_assets
from rlaif_assets.cli import app
from rlaif_assets.evaluation import lineage_view
from rlaif_assets.evaluation.diff_view import diff_view
from rlaif_assets.evaluation.policy_diff import diff_policies, word_diff
from rlaif_assets.records import CommunityPair
from rlaif_assets.store import registry
from rlaif_assets.store.checkpoint_files import adopt_folder, new_work_folder
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.trace import find_snapshot, trace_policy, trace_principle, trace_row
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse
from rlaif_assets.training.pmp import pmp_examples
from tests.homes import Home


def test_a_policy_is_found_by_any_of_its_names(home: Home) -> None:
    policy = home.first["ppo_policy"]
    record = home.warehouse.get(policy)
    version = next(one.version for one in registry.versions(home.warehouse) if one.snapshot_id == policy)
    names = [f"rlaif-policy/{version}", "@candidate", "rlaif-policy@candidate", policy, policy[:8], "ppo_policy"]
    for name in [*names, str(home.folder / str(record.path))]:
        assert find_snapshot(home.warehouse, name).snapshot_id == policy, name
    for name in ("rlaif-policy/99", "@champion", policy[:7], str(home.folder.parent), "ppo_polic"):
        with pytest.raises(StoreError, match="no policy"):
            find_snapshot(home.warehouse, name)
    with pytest.raises(StoreError, match=r"no policy 'rlaif-policy/9'.*rlaif-policy/1"):
        find_snapshot(home.warehouse, "rlaif-policy/9")


def test_a_checkpoint_folder_is_found_from_any_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warehouse = Warehouse(tmp_path / "home")
    record = SnapshotRecord(asset="ppo_policy", key="one")
    work = new_work_folder(warehouse.home)
    (work / "model.safetensors").write_bytes(b"weights")
    path = adopt_folder(work, warehouse.home, "ppo_policy")
    first = warehouse.publish(replace(record, path=path), {}).snapshot_id
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for current, name in ((elsewhere, path), (warehouse.home, path), (warehouse.home.parent, f"home/{path}/")):
        monkeypatch.chdir(current)
        assert find_snapshot(warehouse, name).snapshot_id == first, (current, name)
    second = warehouse.publish(replace(record, path=path, key="two"), {}).snapshot_id
    with pytest.raises(StoreError, match=f"2 snapshots with equal weights; give an id: {first}, {second}"):
        find_snapshot(warehouse, path)
    for name in ("~nouser/x", "x" * 5000):
        with pytest.raises(StoreError, match="no policy"):
            find_snapshot(warehouse, name)


def test_a_home_without_snapshots_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no snapshots yet: run `rlaif run"):
        find_snapshot(Warehouse(tmp_path), "@candidate")


def test_the_whole_ancestry_is_told_with_what_made_it(home: Home) -> None:
    found = json.loads(json.dumps(trace_policy(home.warehouse, "@candidate")))
    by_asset = {one["asset"]: one for one in found["snapshots"]}
    later = {"policy_evaluation", "label_changes", "champion_policy"}
    assert {name: one["snapshot_id"] for name, one in by_asset.items()} == {
        name: snapshot for name, snapshot in home.first.items() if name not in later
    }
    assert [one["aliases"] for one in found["registry"]] == [["candidate"]]
    places = {one["snapshot_id"]: place for place, one in enumerate(found["snapshots"])}
    assert all(places[up] < places[one["snapshot_id"]] for one in by_asset.values() for up in one["inputs"].values())
    policy, reward = by_asset["ppo_policy"], by_asset["reward_model"]
    assert policy["dagster_run_id"] and policy["mlflow_run_id"] and policy["settings"]["updates"] == 1
    assert sum(reward["learned"].values()) == reward["row_counts"]["training_rows"]
    labels = by_asset["harmlessness_preferences"]
    assert labels["passport"]["passport_id"] == reward["passport"]


def reached(found: dict[str, Any]) -> set[str]:
    return {one["asset"] for one in found["learned"]}


def test_a_row_is_followed_to_its_prompt_and_to_the_policy(home: Home) -> None:
    warehouse, policy = home.warehouse, home.first["ppo_policy"]
    label = warehouse.rows("labels", home.first["harmlessness_preferences"])[0]
    found = trace_row(warehouse, label["label_id"])
    assert [one["table"] for one in found["chain"]] == ["prompts", "pairs", "judgements", "judgements", "labels"]
    assert found["chain"][-1]["p_a"] == label["p_a"] and found["chain"][2]["principle_text"]
    pair = found["chain"][1]
    assert pair["pair_id"] == label["pair_id"] and found["chain"][0]["prompt_id"] == pair["prompt_id"]
    assert reached(found) == {"reward_model"} | {  # each half has some of the conversations
        name
        for name in ("reward_model_half_a", "reward_model_half_b")
        if label["label_id"] in {row["row_id"] for row in warehouse.rows("training_rows", home.first[name])}
    }
    assert policy in found["policies"]
    for row_id in (label["judgement_ids"][0], label["pair_id"], pair["response_a_id"], pair["prompt_id"]):
        other = trace_row(warehouse, row_id)
        assert reached(found) <= reached(other) and policy in other["policies"], row_id
    assert {one["asset"] for one in found["snapshots"]} == {"harmlessness_preferences"}


def test_a_revision_is_followed_through_its_critique(home: Home) -> None:
    rows = home.warehouse.rows("revisions", home.first["revised_responses"])
    used = {row["row_id"] for row in home.warehouse.rows("training_rows", home.first["sl_cai_checkpoint"])}
    revision = next(row for row in rows if row["revision_id"] in used)
    found = trace_row(home.warehouse, revision["revision_id"])
    assert [one["table"] for one in found["chain"]] == ["prompts", "revisions", "revisions"]
    first, last = found["chain"][1:]
    assert (first["round"], last["round"]) == (0, 1) and last["critique"] == revision["critique"]
    assert last["principle"] and last["principle_id"] == revision["principle_id"]
    assert reached(found) == {"sl_cai_checkpoint"} and home.first["ppo_policy"] in found["policies"]
    assert reached(trace_row(home.warehouse, first["id"])) == {"sl_cai_checkpoint"}  # by what was made of it


def test_a_row_that_is_not_there_is_refused(home: Home) -> None:
    with pytest.raises(StoreError, match=r"no prompt, response, revision, pair, label, judgement, .* nothing"):
        trace_row(home.warehouse, "nothing")


@pytest.fixture
def damaged(home: Home, tmp_path: Path) -> Warehouse:
    """A copy of the home, to take rows out of."""
    return Warehouse(Path(shutil.copytree(home.pristine, tmp_path / "damaged")))


def remove(warehouse: Warehouse, table: str, column: str, value: str) -> None:
    with warehouse.connection(read_only=False) as connection:
        connection.execute(f'DELETE FROM "{table}" WHERE "{column}" = ?', [value])


def told(warehouse: Warehouse, *words: str) -> str:
    done = CliRunner().invoke(app, ["trace", *words, "--home", str(warehouse.home)])
    assert done.exit_code == 0, done.output
    return done.output


def missing_links(warehouse: Warehouse, row_id: str) -> list[tuple[str, str]]:
    return [(one["table"], one["id"]) for one in trace_row(warehouse, row_id)["chain"] if one.get("missing")]


def test_links_of_a_label_that_are_missing_are_named(home: Home, damaged: Warehouse) -> None:
    label = damaged.rows("labels", home.first["harmlessness_preferences"])[0]
    asked, pair_id = label["label_id"], label["pair_id"]
    judgement, other = label["judgement_ids"]
    whole = trace_row(damaged, asked)
    assert missing_links(damaged, asked) == []
    remove(damaged, "judgements", "judgement_id", judgement)
    assert missing_links(damaged, asked) == [("judgements", judgement)]
    assert f"judgements {judgement}: missing\n" in told(damaged, "--row", asked)
    remove(damaged, "prompts", "prompt_id", whole["chain"][0]["id"])
    prompt = ("prompts", whole["chain"][0]["id"])
    for row_id in (asked, other, pair_id, whole["chain"][1]["response_a_id"]):
        assert prompt in missing_links(damaged, row_id), row_id
    remove(damaged, "pairs", "pair_id", pair_id)
    assert missing_links(damaged, asked) == [("pairs", pair_id), ("judgements", judgement)]
    assert missing_links(damaged, other) == [("pairs", pair_id)]
    assert f"pairs {pair_id}: missing, and with it which prompt it was of\n" in told(damaged, "--row", asked)
    assert trace_row(damaged, asked)["policies"] == whole["policies"]


def test_links_of_a_revision_that_are_missing_are_named(home: Home, damaged: Warehouse) -> None:
    rows = damaged.rows("revisions", home.first["revised_responses"])
    revision = next(row for row in rows if row["parent_id"])
    remove(damaged, "revisions", "revision_id", revision["parent_id"])
    remove(damaged, "critique_principles", "principle_id", revision["principle_id"])
    chain = trace_row(damaged, revision["revision_id"])["chain"]
    assert [(one["table"], one["id"], "missing" in one) for one in chain] == [
        ("prompts", revision["prompt_id"], False),
        ("revisions", revision["parent_id"], True),
        ("critique_principles", revision["principle_id"], True),
        ("revisions", revision["revision_id"], False),
    ]


def test_a_principle_whose_row_is_missing_is_still_told(home: Home, damaged: Warehouse) -> None:
    labels = damaged.rows("labels", home.first["harmlessness_preferences"])
    critique = damaged.rows("critique_principles", home.first["critique_constitution"])
    used = {row["principle_id"] for row in labels}
    both = {row["name"] for row in critique}
    judging = damaged.rows("judging_principles", home.first["judging_constitution"])
    principle = next(row for row in judging if row["principle_id"] in used and row["name"] in both)
    name, lost = principle["name"], principle["principle_id"]
    label = next(row["label_id"] for row in labels if row["principle_id"] == lost)
    before = trace_principle(damaged, lost)
    assert before["missing"] == {}
    remove(damaged, "judging_principles", "principle_id", lost)
    assert trace_principle(damaged, lost) == before | {"name": None, "text": None}
    assert f"principle {lost} (judging)\n  missing: its row is in no constitution" in told(damaged, "--principle", lost)
    namesake = trace_principle(damaged, name)
    assert namesake["kind"] == "critique" and namesake["missing"] == {lost: "judging"}
    assert f"missing, and perhaps of this name too; give an id: {lost} (judging)\n" in told(
        damaged, "--principle", name
    )
    with pytest.raises(StoreError, match=rf"no principle 'x'.* name these, whose rows are missing: {lost} \(judging\)"):
        trace_principle(damaged, "x")
    assert missing_links(damaged, label) == [("judging_principles", lost)]
    assert f"judging_principles {lost}: missing\n" in told(damaged, "--row", label)


def test_what_audits_asked_is_not_called_missing(home: Home) -> None:
    with home.warehouse.connection(read_only=True) as connection:
        probes = connection.execute(
            "SELECT judgement_id FROM judgements ANTI JOIN pairs USING (pair_id) WHERE judgement_id NOT IN"
            " (SELECT unnest(from_json(judgement_ids, '[\"VARCHAR\"]')) FROM labels) LIMIT 1"
        ).fetchall()
    assert probes and missing_links(home.warehouse, probes[0][0]) == []


def test_a_principle_is_counted_in_what_it_touched(home: Home) -> None:
    labels = home.warehouse.rows("labels", home.first["harmlessness_preferences"])
    principle_id = labels[0]["principle_id"]
    own = [row for row in labels if row["principle_id"] == principle_id]
    found = trace_principle(home.warehouse, principle_id)
    assert found["labels"] == len(own) and found["judgements"] >= 2 * len(own) and found["revisions"] == 0
    assert found["kind"] == "judging" and home.first["ppo_policy"] in found["policies"]
    assert found["label_ids"] == sorted(row["label_id"] for row in own) and found["revision_ids"] == []
    assert {one for row in own for one in row["judgement_ids"]} <= set(found["judgement_ids"])
    assert len(found["judgement_ids"]) == found["judgements"]
    revision = next(
        row for row in home.warehouse.rows("revisions", home.first["revised_responses"]) if row["principle_id"]
    )
    critique = trace_principle(home.warehouse, revision["principle_id"])
    assert critique["kind"] == "critique" and critique["revisions"] > 0 and critique["judgements"] == 0
    with pytest.raises(StoreError, match=rf"no principle '{found['name']}x'.*{found['name']}"):
        trace_principle(home.warehouse, found["name"] + "x")


def revised(name: str, parent: str | None, principle: str | None) -> dict[str, Any]:
    return {"revision_id": name, "prompt_id": "q", "parent_id": parent, "principle_id": principle, "text": name}


def test_a_principle_reaches_what_later_rounds_made_from_its_revisions(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    rounds = [revised("r0", None, None), revised("r1", "r0", "first"), revised("r2", "r1", "second")]
    revisions = published(warehouse, "revised_responses", {}, {}, revisions=rounds)
    rows = [{"row_id": "r2", "role": "train", "source": "revision"}]
    sl_cai = published(warehouse, "sl_cai_checkpoint", {}, {"revised_responses": revisions}, training_rows=rows)
    policy = published(warehouse, "ppo_policy", {}, {"sl_cai_checkpoint": sl_cai})
    principles = [
        {"principle_id": one, "name": one, "critique_request": "c", "revision_request": "r"}
        for one in ("first", "second")
    ]
    published(warehouse, "critique_constitution", {}, {}, critique_principles=principles)
    for name, later in (("first", 1), ("second", 0)):
        found = trace_principle(warehouse, name)
        assert (found["revisions"], found["later_revisions"], found["policies"]) == (1, later, [policy])
        assert [found["revision_ids"], found["later_revision_ids"]] == ([["r1"], ["r2"]] if later else [["r2"], []])
        assert [(one["asset"], one["rows"]) for one in found["learned"]] == [("sl_cai_checkpoint", 1)]


def test_a_name_that_both_constitutions_have_asks_for_an_id(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    judging = [{"principle_id": one, "name": name, "text": one} for one, name in (("j", "both"), ("own", "alone"))]
    critique = [{"principle_id": "c", "name": "both", "critique_request": "look", "revision_request": "write"}]
    published(warehouse, "judging_constitution", {}, {}, judging_principles=judging)
    published(warehouse, "judging_constitution", {"again": 1}, {}, judging_principles=judging)
    published(warehouse, "critique_constitution", {}, {}, critique_principles=critique)
    message = r"2 principles were called 'both'; give an id: j \(judging\), c \(critique\)"
    with pytest.raises(StoreError, match=message):
        trace_principle(warehouse, "both")
    assert [trace_principle(warehouse, one)["kind"] for one in ("j", "c", "alone")] == [
        "judging",
        "critique",
        "judging",
    ]
    assert trace_principle(warehouse, "alone") == trace_principle(warehouse, "own")


def test_ppo_learns_from_the_prompts_that_it_answers(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    prompts = [{"prompt_id": one, "messages": [], "split": "train"} for one in ("used", "other")]
    sources = published(warehouse, "red_team_prompts", {}, {}, prompts=prompts)
    rollouts = [{"prompt_id": "used", "update": update, "text": "t"} for update in (0, 1)]
    policy = published(warehouse, "ppo_policy", {}, {"red_team_prompts": sources}, rollouts=rollouts)
    found = trace_row(warehouse, "used")
    assert found["learned"] == [{"asset": "ppo_policy", "snapshot_id": policy, "role": "train", "rows": 1}]
    assert found["policies"] == [policy] and trace_row(warehouse, "other")["learned"] == []


def test_votes_are_followed_from_answer_to_pair_to_examples_and_back(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    pairs = [CommunityPair(f"pair{n}", f"q{n}", f"good{n}", f"bad{n}", "Why?", "So.", "No.") for n in (1, 2)]
    answers = [
        {"answer_id": one, "question_id": pair.question_id, "question": pair.question, "text": one}
        for pair in pairs
        for one in (pair.better_id, pair.worse_id)
    ]
    rows = [vars(pair) for pair in pairs]
    votes = published(warehouse, "community_votes", {}, {}, community_answers=answers, community_pairs=rows)
    examples = [example.row_id for example in pmp_examples(pairs)]
    used = [{"row_id": one, "role": "train", "source": "votes"} for one in examples]
    checkpoint = published(warehouse, "pmp_checkpoint", {}, {"community_votes": votes}, training_rows=used)
    learned = [{"asset": "pmp_checkpoint", "snapshot_id": checkpoint, "role": "train", "rows": 2}]
    for name in ("pair1", "good1", "bad1", *examples[:2]):
        found = trace_row(warehouse, name)
        assert found["learned"] == learned and [one["asset"] for one in found["snapshots"]] == ["community_votes"], name
    assert [one["id"] for one in trace_row(warehouse, examples[3])["chain"]] == ["good2", "bad2", "pair2"]
    assert [one["id"] for one in trace_row(warehouse, "good1")["chain"]] == ["good1"]


def test_an_answer_of_an_evaluation_is_found(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    prompt = {"prompt_id": "p", "messages": [{"role": "user", "content": "Why?"}], "split": "test"}
    published(warehouse, "red_team_prompts", {}, {}, prompts=[prompt])
    answer = {"answer_id": "e", "prompt_id": "p", "policy": "ppo", "text": "So.", "verdict": "engaged"}
    evaluation = published(warehouse, "policy_evaluation", {}, {}, evaluation_answers=[answer])
    found = trace_row(warehouse, "e")
    assert [one["id"] for one in found["chain"]] == ["p", "e"] and found["learned"] == []
    assert [one["snapshot_id"] for one in found["snapshots"]] == [evaluation]
    assert lineage_view.row_lines(found["chain"][-1]) == ["answer of ppo, engaged", "text: So."]


class Changed(NamedTuple):
    """A second policy, made after one judging principle was reworded: its id, and the principle's rows."""

    policy: str
    principle: dict[str, Any]
    reworded: dict[str, Any]
    relabelled: list[str]


@pytest.fixture(scope="module")
def changed(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Changed:
    """The home is as it was afterwards, but for what it knows."""
    text = (Path(rlaif_assets.__path__[0]) / "constitutions" / "default.yaml").read_text()
    labels = home.warehouse.rows("labels", home.first["harmlessness_preferences"])
    used = {row["principle_id"] for row in labels}
    principles = home.warehouse.rows("judging_principles", home.first["judging_constitution"])
    principle = next(row for row in principles if row["principle_id"] in used and row["text"] in text)
    mine = tmp_path_factory.mktemp("constitution") / "mine.yaml"
    mine.write_text(text.replace(principle["text"], f"Think twice. {principle['text']}", 1))
    assert home.run(None, f"constitution.path={mine}").success
    now = home.ids()
    reworded = home.warehouse.rows("judging_principles", now["judging_constitution"])
    relabelled = [row["pair_id"] for row in labels if row["principle_id"] == principle["principle_id"]]
    assert home.run().success and home.ids()["ppo_policy"] == home.first["ppo_policy"]
    one = next(row for row in reworded if row["name"] == principle["name"])
    return Changed(now["ppo_policy"], principle, one, sorted(relabelled))


def test_a_reworded_principle_is_all_that_differs(home: Home, changed: Changed) -> None:
    found = json.loads(json.dumps(diff_policies(home.warehouse, home.first["ppo_policy"], changed.policy, "test")))
    assert [(one["principle"], one["change"]) for one in found["constitution"]] == [
        (changed.principle["name"], "changed")
    ]
    assert found["constitution"][0]["words"][0] == ["+", "Think twice."]
    differing = {
        f"{asset}/{table}": rows
        for asset, tables in found["rows"].items()
        for table, rows in tables.items()
        if any(rows.values())
    }
    assert differing == {"harmlessness_preferences/labels": {"added": [], "removed": [], "changed": changed.relabelled}}
    assert {asset: list(fields) for asset, fields in found["settings"].items()} == {"judging_constitution": ["path"]}
    assert found["code_versions"] == {} and found["judge"] is None
    assert {"sl_cai_checkpoint", "response_pairs", "critique_constitution"} <= set(found["same"])
    rates, texts = [], []
    for policy in (home.first["ppo_policy"], changed.policy):
        evaluation = next(e for e in home.warehouse.list("policy_evaluation") if e.inputs["ppo_policy"] == policy)
        rows = home.warehouse.rows("evaluation_rates", evaluation.snapshot_id)
        own = [row for row in rows if row["split"] == "test" and "ppo" in row["subject"]]
        rates.append({f"{row['subject']}/{row['measure']}": [row["value"], row["low"], row["high"]] for row in own})
        answers = home.warehouse.rows("evaluation_answers", evaluation.snapshot_id)
        own = [row for row in answers if row["split"] == "test" and row["policy"] == "ppo"]
        texts.append({row["prompt_id"]: row["text"] for row in own})  # one sample each
    assert rates[0].keys() == rates[1].keys()
    assert set(found["results"]) == {name for name, value in rates[0].items() if rates[1][name] != value}
    assert texts[0] and {one["prompt_id"] for one in found["answers"]} == {
        prompt for prompt, text in texts[0].items() if texts[1][prompt] != text
    }


def test_a_principle_reaches_the_policies_that_learned_under_it(home: Home, changed: Changed) -> None:
    first = home.first["ppo_policy"]

    def policies(principle_id: str) -> set[str]:
        return set(trace_principle(home.warehouse, principle_id)["policies"]) & {first, changed.policy}

    assert policies(changed.principle["principle_id"]) == {first}
    assert policies(changed.reworded["principle_id"]) == {changed.policy}
    labels = home.warehouse.rows("labels", home.first["harmlessness_preferences"])
    kept = next(row["principle_id"] for row in labels if row["principle_id"] != changed.principle["principle_id"])
    assert policies(kept) == {first, changed.policy}
    with pytest.raises(StoreError, match=f"3 principles were called '{changed.principle['name']}'; give an id") as told:
        trace_principle(home.warehouse, changed.principle["name"])
    for one in (changed.principle, changed.reworded):
        assert f"{one['principle_id']} (judging)" in str(told.value)


def test_the_command_prints_the_difference(home: Home, changed: Changed) -> None:
    words = ["diff", home.first["ppo_policy"], changed.policy, "--home", str(home.folder)]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert f"principle {changed.principle['name']} changed: +Think twice." in told.output
    assert json.loads(CliRunner().invoke(app, [*words, "--json"]).output)["b"]["snapshot_id"] == changed.policy
    wrong = CliRunner().invoke(app, ["diff", "@candidate", "reward_model", "--home", str(home.folder)])
    assert wrong.exit_code == 1 and "name two of one asset" in wrong.output


def published(warehouse: Warehouse, asset: str, settings: dict[str, Any], inputs: dict[str, str], **tables: Any) -> str:
    record = SnapshotRecord(asset=asset, key=f"{asset} {settings} {inputs}", settings=settings, inputs=inputs)
    return warehouse.publish(record, tables).snapshot_id


def test_settings_results_and_answers_of_two_policies(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    prompts = [
        {"prompt_id": name, "messages": [{"role": "user", "content": f"Question {name}?"}], "split": "test"}
        for name in ("p1", "p2", "p3")
    ]
    published(warehouse, "red_team_prompts", {}, {}, prompts=prompts)
    a, b = (published(warehouse, "ppo_policy", {"rate": rate, "seed": 0}, {}, rollouts=[]) for rate in (0.1, 0.2))
    found = diff_policies(warehouse, a, b, "test")
    assert found["settings"] == {"ppo_policy": {"rate": [0.1, 0.2]}} and found["results"] == {}
    assert found["notes"] == [
        f"{side}: ppo_policy {one} was never evaluated" for side, one in zip("ab", (a, b), strict=True)
    ]

    said = {a: ("one two", "harmful", "same"), b: ("one three", "engaged", "same")}
    for number, (policy, (first, verdict, third)) in enumerate(said.items()):
        rates = [
            {"split": split, "subject": "ppo", "measure": measure, "value": value, "low": 0.0, "high": 1.0, "count": 3}
            for split, measure, value in (
                ("test", "kl", 0.5),
                ("test", "helpful_rate", number / 2),
                ("dev", "kl", number),
            )
        ]
        texts = {"p1": (first, "engaged"), "p2": (f"no {verdict}", verdict), "p3": (third, "engaged")}
        answers = [
            {"prompt_id": prompt, "policy": "ppo", "split": "test", "sample": 0, "text": text, "verdict": told}
            for prompt, (text, told) in texts.items()
        ]
        evaluation = {"evaluation_rates": rates, "evaluation_answers": answers}
        published(warehouse, "policy_evaluation", {"n": number}, {"ppo_policy": policy}, **evaluation)
    found = diff_policies(warehouse, a, b, "test")
    assert found["results"] == {"ppo/helpful_rate": {"a": [0.0, 0.0, 1.0], "b": [0.5, 0.0, 1.0]}}
    assert [(one["prompt_id"], one["a"]["text"], one["b"]["text"]) for one in found["answers"]] == [
        ("p2", "no harmful", "no engaged"),  # verdicts first
        ("p1", "one two", "one three"),
    ]
    assert found["answers"][0]["messages"] == prompts[1]["messages"] and found["notes"] == []
    assert len(diff_policies(warehouse, a, b, "test", answers=1)["answers"]) == 1
    done = CliRunner().invoke(app, ["diff", a, b, "--home", str(tmp_path)])
    assert done.exit_code == 0 and "answers that differ most" in done.output and "Question p2?" in done.output


def evaluated(warehouse: Warehouse, inputs: dict[str, str], share: float, **settings: Any) -> str:
    """An evaluation in which every policy has other numbers and says other words."""
    subjects = ("base", "sl_cai", "ppo", "ppo_vs_sl_cai", "sl_cai_vs_base")
    rates = [{"split": "test", "subject": one, "measure": "share", "value": share} for one in subjects]
    answers = [
        {"prompt_id": "q", "policy": one, "split": "test", "sample": 0, "text": f"{one} {share}"}
        for one in subjects[:3]
    ]
    tables = {"evaluation_rates": rates, "evaluation_answers": answers}
    return published(warehouse, "policy_evaluation", settings, inputs, **tables)


def test_results_are_those_of_the_asset_that_is_compared(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    made: list[dict[str, str]] = []
    for number in (1, 2):
        base = published(warehouse, "base_model", {"n": number}, {})
        sl_cai = published(warehouse, "sl_cai_checkpoint", {"n": number}, {"base_model": base})
        policy = published(warehouse, "ppo_policy", {"n": number}, {"sl_cai_checkpoint": sl_cai})
        made.append({"base_model": base, "sl_cai_checkpoint": sl_cai, "ppo_policy": policy})
        evaluated(warehouse, made[-1], number / 2)
    for asset, subject, measures in (
        ("base_model", "base", {"base/share"}),
        ("sl_cai_checkpoint", "sl_cai", {"sl_cai/share", "sl_cai_vs_base/share"}),
        ("ppo_policy", "ppo", {"ppo/share", "ppo_vs_sl_cai/share"}),
    ):
        found = diff_policies(warehouse, made[0][asset], made[1][asset], "test")
        assert found["results"].keys() == measures, asset
        texts = [(one["a"]["text"], one["b"]["text"]) for one in found["answers"]]
        assert texts == [(f"{subject} 0.5", f"{subject} 1.0")], asset
    others = [published(warehouse, "red_team_prompts", {"n": number}, {}) for number in (1, 2)]
    found = diff_policies(warehouse, others[0], others[1], "test")
    assert found["notes"] == ["red_team_prompts is no policy: there are no results to compare"]


def test_evaluations_that_were_made_alike_are_compared(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    a, b = (published(warehouse, "ppo_policy", {"n": number}, {}) for number in (1, 2))
    of_a, of_b = {"ppo_policy": a}, {"ppo_policy": b}
    how = {"samples": 4, "temperature": 1.0, "bootstrap": 10}
    first = evaluated(warehouse, of_a, 0.1, **how)
    other = evaluated(warehouse, of_b, 0.3, **how | {"samples": 1, "seed": 7})
    found = diff_policies(warehouse, a, b, "test")
    assert found["evaluations"] == {"a": first, "b": other}
    assert found["notes"] == [
        "the evaluations were made with different settings, which changes results too: samples 4 -> 1, seed (none) -> 7"
    ]
    assert f"note: {found['notes'][0]}" in CliRunner().invoke(app, ["diff", a, b, "--home", str(tmp_path)]).output
    alike = evaluated(warehouse, of_b, 0.2, **how | {"bootstrap": 1000})
    evaluated(warehouse, of_a, 0.4, **how | {"samples": 2})
    found = diff_policies(warehouse, a, b, "test")
    assert found["evaluations"] == {"a": first, "b": alike} and found["notes"] == []
    assert found["results"]["ppo/share"] == {"a": [0.1, None, None], "b": [0.2, None, None]}
    newest = evaluated(warehouse, of_b, 0.5, **how | {"samples": 2})
    assert diff_policies(warehouse, a, b, "test")["evaluations"]["b"] == newest


def test_assets_that_differ_by_content_alone_are_told(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    made: list[dict[str, str]] = []
    for number in "12":
        row = {"fingerprint": number * 64, "source": "folder"}
        base = published(warehouse, "base_model", {"source": "mine"}, {}, external_models=[row])
        record = SnapshotRecord(asset="sl_cai_checkpoint", key=number, inputs={"base_model": base})
        work = new_work_folder(warehouse.home)
        (work / "model.safetensors").write_bytes(number.encode())
        path = adopt_folder(work, warehouse.home, "sl_cai_checkpoint")
        sl_cai = warehouse.publish(replace(record, path=path), {}).snapshot_id
        made.append({"base": base, "sl_cai": sl_cai, "weights": path.rpartition("/")[2]})
        shutil.rmtree(warehouse.home / path)
    one, other = made
    found = json.loads(json.dumps(diff_policies(warehouse, one["sl_cai"], other["sl_cai"], "test")))
    assert found["content"] == {"base_model": [[one["base"]], [other["base"]]]}
    assert found["weights"] == {
        "base_model": ["1" * 32, "2" * 32],
        "sl_cai_checkpoint": [one["weights"], other["weights"]],
    }
    lines = CliRunner().invoke(app, ["diff", one["sl_cai"], other["sl_cai"], "--home", str(tmp_path)]).output
    assert f"content alone of base_model differs: {one['base']} -> {other['base']}\n" in lines
    assert f"weights of base_model: {'1' * 32} -> {'2' * 32}\n" in lines


def test_two_versions_of_an_asset_in_one_ancestry_are_both_compared(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)

    def labelled(p_a: float) -> str:
        label = {"label_id": f"l{p_a}", "pair_id": "x", "principle_id": "p", "p_a": p_a, "judgement_ids": []}
        return published(warehouse, "harmlessness_preferences", {"seed": p_a}, {}, labels=[label])

    old, new = labelled(0.1), labelled(0.9)
    half = published(warehouse, "reward_model_half_a", {}, {"harmlessness_preferences": new})
    policies = []
    for labels in (old, new):
        reward = published(warehouse, "reward_model", {"of": labels}, {"harmlessness_preferences": labels})
        policies.append(published(warehouse, "ppo_policy", {}, {"reward_model": reward, "reward_model_half_a": half}))
    found = diff_policies(warehouse, policies[0], policies[1], "test")
    assert found["same"] == ["reward_model_half_a"]
    assert [sorted(ids) for ids in found["versions"]["harmlessness_preferences"]] == [sorted((old, new)), [new]]
    seeds, other = found["settings"]["harmlessness_preferences"]["seed"]
    assert sorted(seeds) == [0.1, 0.9] and other == 0.9
    rows = {"added": [], "removed": [], "changed": ["x"]}
    assert found["rows"]["harmlessness_preferences"] == {"labels": rows}
    printed = CliRunner().invoke(app, ["diff", *policies, "--home", str(tmp_path)])
    assert "versions of harmlessness_preferences: " in printed.output, printed.output


def test_examples_splits_answers_and_training_rows_are_compared(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    long = "x" * 100
    policies = []
    for side, split, role in (("one", "train", "heldout"), ("two", "test", "train")):
        prompts = [{"prompt_id": "q", "messages": [], "split": split, "kind": "harmful"}]
        rows = [{"row_id": "r", "role": role, "source": "revision"}]
        tables: dict[str, dict[str, Any]] = {
            "red_team_prompts": {"prompts": prompts},
            "judging_constitution": {"judging_examples": [{"example_id": f"judging {side}"}]},
            "critique_constitution": {"critique_examples": [{"example_id": f"critique {side}"}]},
            "sl_cai_checkpoint": {"answers": [{"answer_id": f"answer {side}"}], "training_rows": rows},
        }
        inputs = {name: published(warehouse, name, {}, {}, **rows) for name, rows in tables.items()}
        policies.append(published(warehouse, "ppo_policy", {long: side}, inputs))
    rows = diff_policies(warehouse, policies[0], policies[1], "test")["rows"]

    def another(kind: str) -> dict[str, list[str]]:
        return {"added": [f"{kind} two"], "removed": [f"{kind} one"], "changed": []}

    assert rows == {
        "red_team_prompts": {"prompts": {"added": [], "removed": [], "changed": ["q"]}},
        "judging_constitution": {"judging_examples": another("judging")},
        "critique_constitution": {"critique_examples": another("critique")},
        "sl_cai_checkpoint": {
            "answers": another("answer"),
            "training_rows": {"added": [], "removed": [], "changed": ["r"]},
        },
    }
    lines = CliRunner().invoke(app, ["diff", *policies, "--home", str(tmp_path)]).output.splitlines()
    assert f"settings of ppo_policy: {long} one -> two" in lines  # piped lines are not wrapped
    assert "rows of sl_cai_checkpoint (training_rows): 1 changed, changed first r" in lines


def test_words_are_compared() -> None:
    assert word_diff("choose the kind one", "choose the very kind one") == [
        [" ", "choose the"],
        ["+", "very"],
        [" ", "kind one"],
    ]
    assert word_diff("", "new") == [["+", "new"]] and word_diff("old", "") == [["-", "old"]]


def trace(home: Home, *words: str) -> Any:
    return CliRunner().invoke(app, ["trace", *words, "--home", str(home.folder)])


def test_the_command_prints_trees_chains_counts_json_and_a_page(home: Home, tmp_path: Path) -> None:
    policy = home.first["ppo_policy"]
    tree = trace(home, "@candidate")
    assert tree.exit_code == 0 and tree.output.startswith("rlaif-policy/")
    for words in (f"ppo_policy {policy}", "(above)", "Dagster run", "judge's passport", "was given ", "settings "):
        assert words in tree.output, words
    record = home.warehouse.get(policy)
    dagster = f"http://127.0.0.1:3000/runs/{record.dagster_run_id}"
    assert f"Dagster run {dagster}; MLflow {record.metrics['mlflow_url']}\n" in tree.output  # piped lines are not cut
    found = json.loads(trace(home, policy, "--json").output)
    assert found["snapshot_id"] == policy and found["snapshots"][-1]["links"]["dagster"] == dagster
    label = home.warehouse.rows("labels", home.first["harmlessness_preferences"])[0]
    row = trace(home, "--row", label["label_id"])
    assert f"labels {label['label_id']}" in row.output and "policies made from these (" in row.output
    assert "judgements" in trace(home, "--principle", label["principle_id"]).output
    page = tmp_path / "trace.html"
    assert trace(home, "@candidate", "--html", str(page)).exit_code == 0
    text = page.read_text()
    assert f'<a href="{dagster}">' in text
    later = {"policy_evaluation", "label_changes", "champion_policy"}
    assert all(f'id="{snapshot}"' in text for name, snapshot in home.first.items() if name not in later)
    assert "src=" not in text and "<script" not in text


def test_links_to_mlflow_are_missing_where_its_database_is_gone(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "home"
    shutil.copytree(home.pristine, folder)
    policy, page = home.first["ppo_policy"], tmp_path / "trace.html"
    record = home.warehouse.get(policy)
    url, gone = str(record.metrics["mlflow_url"]), "link missing: mlflow.db is gone"

    def told() -> tuple[str, dict[str, Any], str]:
        words = ["trace", policy, "--home", str(folder)]
        tree, found, _ = (CliRunner().invoke(app, [*words, *more]) for more in ([], ["--json"], ["--html", str(page)]))
        return tree.output, json.loads(found.output), page.read_text()

    tree, found, text = told()
    assert url in tree and f'<a href="{url}">' in text and gone not in tree + text
    assert found["mlflow_missing"] is None and found["snapshots"][-1]["links"]["mlflow"] == url
    (folder / "mlflow.db").unlink()
    tree_after, after, text_after = told()
    for shown in (tree_after, text_after):
        assert "/#/experiments/" not in shown and f"run {record.mlflow_run_id} ({gone})" in shown
    assert after["mlflow_missing"] == gone and not any(one["links"]["mlflow"] for one in after["snapshots"])
    lines = zip(tree.splitlines(), tree_after.splitlines(), strict=True)
    assert all(before == now or "MLflow http" in before for before, now in lines)
    for one in (*found["snapshots"], *after["snapshots"]):
        del one["links"]["mlflow"], one["links"]["mlflow_missing"]
    assert after | {"mlflow_missing": None} == found
    assert not (folder / "mlflow.db").exists()


def links(home: Path, policy: str) -> dict[str, dict[str, str | None]]:
    return {one["asset"]: one["links"] for one in trace_policy(Warehouse(home), policy)["snapshots"]}


def test_links_to_runs_that_mlflows_database_does_not_have_are_missing(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "a home #1"
    shutil.copytree(home.pristine, folder)
    policy = home.first["ppo_policy"]
    before, run = links(folder, policy), str(home.warehouse.get(policy).mlflow_run_id)
    reward = home.warehouse.get(home.first["reward_model"]).mlflow_run_id
    with sqlite3.connect(folder / "mlflow.db") as connection:
        connection.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?", [reward])
        connection.execute("UPDATE runs SET run_uuid = 'of the database that is there' WHERE run_uuid = ?", [run])
    connection.close()
    after = links(folder, policy)
    unknown, deleted = "link missing: mlflow.db has no such run", "link missing: the run was deleted in mlflow.db"
    assert (after["ppo_policy"]["mlflow"], after["ppo_policy"]["mlflow_missing"]) == (None, unknown)
    assert (after["reward_model"]["mlflow"], after["reward_model"]["mlflow_missing"]) == (None, deleted)
    others = before.keys() - {"ppo_policy", "reward_model"}
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    words, page = ["trace", policy, "--home", str(folder)], tmp_path / "trace.html"
    assert f"MLflow run {run} ({unknown})\n" in CliRunner().invoke(app, words).output
    assert CliRunner().invoke(app, [*words, "--html", str(page)]).exit_code == 0 and unknown in page.read_text()

    writer = sqlite3.connect(folder / "mlflow.db")
    writer.execute("BEGIN EXCLUSIVE")
    assert links(folder, policy) == before  # nobody knows
    writer.close()
    for content in (b"", b"no database " * 100):
        (folder / "mlflow.db").write_bytes(content)
        assert links(folder, policy) == before and (folder / "mlflow.db").read_bytes() == content


def test_a_home_whose_records_are_on_a_server_keeps_its_links(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    url = "https://mlflow.example/#/experiments/1/runs/r"
    record = SnapshotRecord(asset="ppo_policy", key="k", metrics={"mlflow_url": url}, mlflow_run_id="r")
    policy = warehouse.publish(record, {}).snapshot_id
    found = trace_policy(warehouse, policy)
    assert found["mlflow_missing"] is None and found["snapshots"][0]["links"]["mlflow"] == url
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:  # of earlier runs, which were recorded here
        connection.execute("CREATE TABLE runs (run_uuid TEXT, lifecycle_stage TEXT)")
    connection.close()
    assert links(tmp_path, policy)["ppo_policy"]["mlflow"] == url


def test_the_command_refuses_what_it_cannot_tell(home: Home, tmp_path: Path) -> None:
    assert trace(home).exit_code == 2 and trace(home, "@candidate", "--row", "x").exit_code == 2
    for words, message in (
        (["--html", str(tmp_path)], "is a folder, name a file"),
        (["--html", str(tmp_path / "none" / "x.html")], f"there is no folder {tmp_path / 'none'}"),
        (["--html", str(tmp_path / "x.html"), "--json"], "name one of --json and --html"),
    ):
        refused = trace(home, "@candidate", *words)
        assert refused.exit_code == 2 and message in refused.output, words
    assert not list(tmp_path.iterdir())
    unknown = trace(home, "@champion")
    assert unknown.exit_code == 1 and "no policy '@champion'" in unknown.output
    missing = CliRunner().invoke(app, ["trace", "@candidate", "--home", str(tmp_path / "none")])
    assert missing.exit_code == 1 and not (tmp_path / "none").exists()


def test_neither_dagster_nor_mlflow_is_imported(home: Home) -> None:
    code = (
        "import sys; from rlaif_assets.cli import app; app(sys.argv[1:], standalone_mode=False);"
        "heavy = {'dagster', 'mlflow', 'torch', 'transformers'} & sys.modules.keys();"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    words = ["trace", "@candidate", "--home", str(home.folder)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_the_addresses_of_runs_are_links(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    settings = {"source": "http://elsewhere.example/x"}
    metrics = {"mlflow_url": 'http://mlflow.example/#/"><script>'}
    record = SnapshotRecord(asset="base_model", key="k", settings=settings, metrics=metrics, mlflow_run_id="r")
    found = trace_policy(warehouse, warehouse.publish(record, {}).snapshot_id, "http://dagster.example")
    text = lineage_view.policy_page(found)
    assert found["snapshots"][0]["links"]["dagster"] is None  # no run made it
    assert re.findall(r'href="([^"]*)"', text) == ["http://mlflow.example/#/&quot;&gt;&lt;script&gt;"]
    assert "source=http://elsewhere.example/x" in text and "<script" not in text


def test_text_of_rows_is_not_read_as_markup() -> None:
    hostile = {"table": "prompts", "id": "p", "messages": [{"role": "user", "content": "[bold]x[/nothing] <b>"}]}
    found = {"chain": [hostile], "learned": [], "policies": []}
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as seen:
        console.print(lineage_view.row_view(found))
    assert "user: [bold]x[/nothing] <b>" in seen.get()


HOSTILE = "fire :fire: \x1b[31mRED\x9b0m\x07 \u202eturned [red]x[/red] back\\"
SHOWN = r"fire :fire: \x1b[31mRED\x9b0m\x07 \u202eturned [red]x[/red] back" + "\\"


def test_text_of_others_does_not_steer_the_terminal(tmp_path: Path) -> None:
    from rich.console import Console

    warehouse = Warehouse(tmp_path)
    prompts = [{"prompt_id": "q", "messages": [{"role": "user", "content": HOSTILE}], "split": "test"}]
    published(warehouse, "red_team_prompts", {}, {}, prompts=prompts)
    policies = []
    for number in range(2):
        principles = [{"principle_id": f"p{number}", "name": HOSTILE, "text": f"{HOSTILE} {number}"}]
        judging = published(warehouse, "judging_constitution", {}, {}, judging_principles=principles)
        inputs = {"judging_constitution": judging}
        policies.append(published(warehouse, "ppo_policy", {HOSTILE: f"{number} {HOSTILE[:30]}"}, inputs))
        answers = [
            {"prompt_id": "q", "policy": "ppo", "split": "test", "sample": 0, "text": f"{HOSTILE}\r\n{number}"},
        ]
        rates = [{"split": "test", "subject": "ppo", "measure": HOSTILE, "value": number / 2}]
        evaluation = {"evaluation_answers": answers, "evaluation_rates": rates}
        published(warehouse, "policy_evaluation", {}, {"ppo_policy": policies[-1]}, **evaluation)
    views = {
        "row": lineage_view.row_view(trace_row(warehouse, "q")),
        "principle": lineage_view.principle_view(trace_principle(warehouse, "p0")),
        "tree": lineage_view.policy_tree(trace_policy(warehouse, policies[0])),
        "diff": diff_view(diff_policies(warehouse, policies[0], policies[1], "test")),
    }
    times = {
        "row": 1,
        "principle": 2,
        "tree": 1,
        "diff": 7,
    }  # of diff: setting, principle twice, measure, answers, prompt
    for name, view in views.items():
        console = Console(width=1000, highlight=False)
        with console.capture() as seen:
            console.print(view)
        told = seen.get()
        assert not {character for character in told if unicodedata.category(character) in ("Cc", "Cf")} - {"\n"}, name
        assert told.count(SHOWN) == times[name], (name, told)
    assert json.loads(json.dumps(trace_row(warehouse, "q")))["chain"][0]["messages"] == prompts[0]["messages"]


def test_the_registrys_record_keeps_every_move(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)

    def add(*pairs: tuple[str, int | None]) -> list[int]:
        return [registry.add_version(warehouse, "m", snapshot_id, number) for snapshot_id, number in pairs]

    assert add(("a", 1), ("b", 2), ("b", 2)) == [1, 2, 2]
    for version in (1, 2, 2, 1):
        registry.set_alias(warehouse, "m", "champion", version, "me", "why")
    assert [(one.version, one.snapshot_id, one.aliases) for one in registry.versions(warehouse, "m")] == [
        (1, "a", ("champion",)),
        (2, "b", ()),
    ]
    assert registry.versions(warehouse, "other") == []
    # MLflow's database was made anew, then it was away, then it was back.
    assert add(("c", 1), ("d", None), ("d", 2), ("a", 3)) == [3, 4, 4, 1]
    assert [(one.version, one.snapshot_id, one.mlflow_version) for one in registry.versions(warehouse, "m")] == [
        *((1, "a", 3), (2, "b", 2), (3, "c", 1), (4, "d", 2))
    ]
    with warehouse.connection(read_only=True) as connection:
        assert connection.execute("SELECT version FROM aliases ORDER BY position").fetchall() == [(1,), (2,), (1,)]
