"""`rlaif export`: a folder that transformers loads, its card, and a statement that its files are checked against."""

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
from tests.homes import Home


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
    after = ("ppo_policy", "policy_evaluation", "label_changes")
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
    damage(copy)
    done = CliRunner().invoke(app, ["verify", str(copy), "--json"])
    assert done.exit_code == 1 and [named in one for one in json.loads(done.output)["problems"]] == [True]


def test_what_cannot_be_exported_or_read_is_refused(home: Home, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not an empty folder"):
        export_policy(home.warehouse, home.first["ppo_policy"], exported)
    with pytest.raises(StoreError, match="has no weights"):
        export_policy(home.warehouse, home.first["red_team_prompts"], tmp_path / "prompts")
    (exported / STATEMENT).write_text("[]")
    with pytest.raises(ExportError, match="cannot be read as an in-toto statement"):
        verify_export(exported)
    words = ["export", "ppo_policy", str(tmp_path / "new"), "--home", str(home.folder)]
    assert CliRunner().invoke(app, words).exit_code == 0 and verify_export(tmp_path / "new") == []


def test_a_missing_library_is_told(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(SigningError, match="extra `sign`"):
        export_policy(home.warehouse, home.first["ppo_policy"], tmp_path / "export", tmp_path / "key.pem")
    assert not (tmp_path / "export").exists()
