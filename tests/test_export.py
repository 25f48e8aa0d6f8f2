"""`rlaif export`: a folder that transformers loads, its card, and a statement that its files are checked against."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

from rlaif_assets.cli import app
from rlaif_assets.evaluation.export import (
    BOM,
    CARD,
    SOURCE_URI,
    STATEMENT,
    ExportError,
    export_policy,
    verify_export,
)
from rlaif_assets.evaluation.report import build_report
from rlaif_assets.evaluation.signing import SigningError
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.fingerprint import file_sha256
from rlaif_assets.store.warehouse import SnapshotRecord, snapshot_key
from tests.homes import Home, failure


@pytest.fixture(scope="module")
def original(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "export"
    export_policy(home.warehouse, home.first["ppo_policy"], folder)
    return folder


@pytest.fixture
def exported(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "export"))


@pytest.fixture(scope="module")
def ancestors(home: Home) -> dict[str, str]:
    """Content hash by snapshot id, of all that the policy was made from."""
    after = ("ppo_policy", "policy_evaluation", "label_changes", "champion_policy")
    ids = [snapshot for asset, snapshot in home.first.items() if asset not in after]
    return {snapshot: home.warehouse.get(snapshot).content_hash for snapshot in ids}


def test_transformers_loads_it_and_it_is_the_policy(home: Home, exported: Path) -> None:
    policy = home.warehouse.weights(home.warehouse.get(home.first["ppo_policy"]))
    models: list[Any] = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (policy, exported)
    ]
    tokenizer: Any = AutoTokenizer.from_pretrained(exported)
    messages = [{"role": "user", "content": "How do I water plants?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        logits = [model(**ids).logits for model in models]
    assert torch.equal(*logits)
    assert GenerationConfig.from_pretrained(exported).eos_token_id is not None


def test_the_files_are_those_that_vllm_reads(exported: Path) -> None:
    """vLLM asks for config.json with `architectures`, whole tensors under the architecture's names, and a tokenizer."""
    names = {path.name for path in exported.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", CARD} <= names
    assert json.loads((exported / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert not any(name.endswith((".bin", ".pt")) or "adapter" in name or name.startswith("rlaif") for name in names)
    with safe_open(exported / "model.safetensors", "pt") as file:
        keys = set(file.keys())
    assert "model.layers.0.self_attn.q_proj.weight" in keys and not any("lora" in key for key in keys)
    template = (exported / "chat_template.jinja").is_file()
    assert template or "chat_template" in json.loads((exported / "tokenizer_config.json").read_text())


def test_the_statement_names_every_file_and_every_ancestor(
    home: Home, exported: Path, ancestors: dict[str, str]
) -> None:
    told = json.loads((exported / STATEMENT).read_text())
    assert told["_type"] == "https://in-toto.io/Statement/v1"
    assert told["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {one["name"]: one["digest"]["sha256"] for one in told["subject"]}
    assert subjects == {path.name: file_sha256(path) for path in exported.iterdir() if path.name != STATEMENT}
    definition = told["predicate"]["buildDefinition"]
    record = home.warehouse.get(home.first["ppo_policy"])
    digests = {one["uri"]: one["digest"] for one in definition["resolvedDependencies"]}
    assert digests.pop(SOURCE_URI, None) == ({"gitCommit": record.git_commit} if record.git_commit else None)
    assert digests == {
        f"urn:rlaif-assets:snapshot:{snapshot}": {"rlaifContentHash": digest} for snapshot, digest in ancestors.items()
    }
    assert definition["externalParameters"]["settings"] == record.settings
    assert told["predicate"]["runDetails"]["metadata"]["invocationId"] == record.dagster_run_id


def test_the_bill_of_materials_names_files_ancestors_and_results(
    home: Home, exported: Path, ancestors: dict[str, str]
) -> None:
    told = json.loads((exported / BOM).read_text())
    policy = told["metadata"]["component"]
    assert {one["name"]: one["hashes"] for one in policy["components"]} == {
        path.name: [{"alg": "SHA-256", "content": file_sha256(path)}]
        for path in exported.iterdir()
        if path.name not in (STATEMENT, BOM)
    }
    hashes = {
        one["version"]: next(p["value"] for p in one["properties"] if p["name"] == "rlaif-assets:content_hash")
        for one in told["components"]
    }
    assert hashes == ancestors
    kinds = {one["name"]: one["type"] for one in told["components"]}
    assert kinds["reward_model"] == kinds["base_model"] == "machine-learning-model"
    assert kinds["red_team_prompts"] == kinds["harmlessness_preferences"] == "data"
    uses = {one["ref"]: set(one["dependsOn"]) for one in told["dependencies"]}
    inputs = home.warehouse.get(home.first["ppo_policy"]).inputs.values()
    assert uses[policy["bom-ref"]] == {f"urn:rlaif-assets:snapshot:{one}" for one in inputs}
    measured = {one["type"]: one for one in policy["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    rates = build_report(home.warehouse, "test")["policies"]["ppo"]
    assert float(measured["kl"]["value"]) == pytest.approx(rates["kl"], rel=1e-5)
    assert set(measured) == {name for name, value in rates.items() if isinstance(value, float)}


def test_the_bill_of_materials_is_valid_cyclonedx(exported: Path) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    from cyclonedx.schema import SchemaVersion

    validator = validation.JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str((exported / BOM).read_text()) is None
    assert validator.validate_str('{"bomFormat": "CycloneDX", "specVersion": "1.6", "components": 1}') is not None


def test_the_card_tells_data_constitution_judge_results_and_limits(home: Home, exported: Path) -> None:
    card = ModelCard.load(exported / CARD)
    assert card.data.to_dict()["library_name"] == "transformers"
    for part in ("## Data", "## Constitution", "## Judge", "## Results", "## Limits", home.first["ppo_policy"]):
        assert part in card.text
    principle = home.warehouse.rows("judging_principles", home.first["judging_constitution"])[0]
    assert principle["name"] in card.text and "| position_flip_rate |" in card.text
    assert "| harmless rate |" in card.text


@pytest.fixture
def copy(home: Home, model: Path, tmp_path: Path) -> Home:
    shutil.copytree(home.pristine, tmp_path / "home")
    return Home(tmp_path / "home", model)


def test_adapters_are_merged(copy: Home, tmp_path: Path) -> None:
    done = copy.run(["ppo_policy"], "ppo_policy.lora_rank=2")
    assert done.success, failure(done)
    export_policy(copy.warehouse, "ppo_policy", tmp_path / "export")
    with safe_open(tmp_path / "export" / "model.safetensors", "pt") as file:
        keys = set(file.keys())
    assert "model.layers.0.self_attn.q_proj.weight" in keys
    assert not any("lora" in key or "base_layer" in key for key in keys)
    policy, sl_cai = (copy.warehouse.current(asset) for asset in ("ppo_policy", "sl_cai_checkpoint"))
    assert policy is not None and policy.settings["lora_rank"] == 2 and sl_cai is not None
    ids = torch.arange(5, 15).unsqueeze(0)
    folders = copy.warehouse.weights(policy), tmp_path / "export", copy.warehouse.weights(sl_cai)
    with torch.inference_mode():
        made, exported, before = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits for folder in folders
        )
    assert torch.equal(made, exported) and not torch.equal(exported, before)


def keyed(record: SnapshotRecord, **settings: Any) -> SnapshotRecord:
    """The record as it would be under these settings."""
    told = {**record.settings, **settings}
    key = snapshot_key(record.asset, record.inputs, told, record.code_version)
    return dataclasses.replace(record, key=key, settings=told)


def test_a_policy_that_is_not_the_newest_has_its_own_results(copy: Home, tmp_path: Path) -> None:
    warehouse = copy.warehouse
    policy, evaluation = warehouse.current("ppo_policy"), warehouse.current("policy_evaluation")
    assert policy is not None and evaluation is not None
    other = warehouse.publish(keyed(policy, seed=7), {"rollouts": warehouse.rows("rollouts", policy.snapshot_id)})
    rates = [row | {"value": 0.123} for row in warehouse.rows("evaluation_rates", evaluation.snapshot_id)]
    inputs = evaluation.inputs | {"ppo_policy": other.snapshot_id}
    newest = warehouse.publish(
        keyed(dataclasses.replace(evaluation, inputs=inputs), seed=7), {"evaluation_rates": rates}
    )
    for one in (other, newest):
        warehouse.record_materialization(one.snapshot_id, None, False)
    for name, snapshot, own in (("new", other.snapshot_id, True), ("old", policy.snapshot_id, False)):
        export_policy(warehouse, snapshot, tmp_path / name)
        card = (tmp_path / name / CARD).read_text()
        assert "| harmless rate |" in card and ("12.3%" in card) == own
        told = json.loads((tmp_path / name / BOM).read_text())
        metrics = told["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
        assert metrics and ({one["value"] for one in metrics} == {"0.123"}) == own
    export_policy(warehouse, "sl_cai_checkpoint", tmp_path / "sl_cai")
    card = ModelCard.load(tmp_path / "sl_cai" / CARD)
    assert "| on held-out prompts | base | this policy |" in card.text and "ppo" not in card.data.to_dict()["tags"]


def swap_weights(home: Home, policy: Path) -> None:
    sl_cai = home.warehouse.current("sl_cai_checkpoint")
    assert sl_cai is not None
    shutil.rmtree(policy)
    shutil.copytree(home.warehouse.weights(sl_cai), policy)


def change_a_rollout(home: Home, policy: Path) -> None:
    with home.warehouse.connection(read_only=False) as connection:
        connection.execute("UPDATE rollouts SET text = 'another' WHERE position = 0")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (swap_weights, "content hash of rows and weights differs"),
        (change_a_rollout, "rollouts: the rows' hash differs"),
        (lambda home, policy: (policy / "modeling_own.py").write_text("x = 1"), "modeling_own.py was added later"),
        (lambda home, policy: (policy / "runs").mkdir(), "runs was added later"),
    ],
)
def test_what_is_not_as_it_was_published_is_not_exported(
    copy: Home, tmp_path: Path, damage: Callable[[Home, Path], None], named: str
) -> None:
    record = copy.warehouse.current("ppo_policy")
    assert record is not None and record.path is not None
    damage(copy, copy.folder / record.path)
    words = ["export", "ppo_policy", str(tmp_path / "export"), "--home", str(copy.folder)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1 and named in " ".join(done.output.split())
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    "damage",
    [
        """UPDATE snapshots SET settings = json_merge_patch(settings, '{"updates": 9}') WHERE asset = 'ppo_policy'""",
        "UPDATE judging_principles SET text = 'another' WHERE position = 0",
        "UPDATE evaluation_rates SET value = 0.999 WHERE position = 0",
        "UPDATE prompts SET messages = '[]' WHERE position = 0",
    ],
)
def test_no_card_is_written_of_what_is_not_as_it_was_published(copy: Home, tmp_path: Path, damage: str) -> None:
    with copy.warehouse.connection(read_only=False) as connection:
        connection.execute(damage)
    with pytest.raises(StoreError, match="not as it was published: "):
        export_policy(copy.warehouse, "ppo_policy", tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_folder_may_be_named_by_a_dot(copy: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_policy(copy.warehouse, "ppo_policy", Path())
    assert verify_export(tmp_path / "here") == []


def test_a_failure_leaves_nothing(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> dict[str, Any]:
        raise OSError("no space left")

    monkeypatch.setattr("rlaif_assets.evaluation.export.statement", broken)
    (tmp_path / "export").mkdir()
    with pytest.raises(OSError, match="no space left"):
        export_policy(home.warehouse, home.first["ppo_policy"], tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["export"] and not any((tmp_path / "export").iterdir())


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (flip_a_byte, "model.safetensors has changed"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "more.safetensors").write_bytes(b"x"), "more.safetensors was added later"),
    ],
)
def test_the_command_names_what_was_done_to_a_copy(
    exported: Path, tmp_path: Path, damage: Callable[[Path], None], named: str
) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    assert verify_export(copy) == []
    whole = CliRunner().invoke(app, ["verify", str(copy)])
    assert whole.exit_code == 0 and "0 problems" in whole.output
    assert CliRunner().invoke(app, ["verify", ""]).exit_code == 2
    damage(copy)
    done = CliRunner().invoke(app, ["verify", str(copy), "--json"])
    assert done.exit_code == 1 and [named in one for one in json.loads(done.output)["problems"]] == [True]


def test_what_cannot_be_exported_or_read_is_refused(home: Home, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not an empty folder"):
        export_policy(home.warehouse, home.first["ppo_policy"], exported)
    with pytest.raises(StoreError, match="has no weights"):
        export_policy(home.warehouse, home.first["red_team_prompts"], tmp_path / "prompts")
    with pytest.raises(StoreError, match="reward_model is LlamaForSequenceClassification, not a causal language model"):
        export_policy(home.warehouse, "reward_model", tmp_path / "reward")
    told = json.loads((exported / STATEMENT).read_text())
    for wrong in ([], told | {"subject": [{"name": 1, "digest": {"sha256": "0"}}]}, told | {"predicate": {}}):
        (exported / STATEMENT).write_text(json.dumps(wrong))
        with pytest.raises(ExportError, match="cannot be read as an in-toto statement"):
            verify_export(exported)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    words = ["export", "ppo_policy", str(tmp_path / "new"), "--home", str(home.folder)]
    assert CliRunner().invoke(app, words).exit_code == 0 and verify_export(tmp_path / "new") == []


def test_a_missing_library_is_told(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(SigningError, match="extra `sign`"):
        export_policy(home.warehouse, home.first["ppo_policy"], tmp_path / "export", tmp_path / "key.pem")
    assert not (tmp_path / "export").exists()
