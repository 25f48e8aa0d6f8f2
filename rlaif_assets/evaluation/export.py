"""A policy as a folder that transformers and vLLM load, with its model card, its ML-BOM and its lineage as an in-toto
statement, signed where a key is given.

The statement (in-toto Statement v1 with SLSA provenance v1 as predicate, https://slsa.dev/spec/v1.1/provenance) names
every other file of the folder by its SHA-256 and every snapshot that the policy was made from by its content hash. The
signature, written last, covers all of them.
"""

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlaif_assets.evaluation.ml_bom import ml_bom, snapshot_uri, utc
from rlaif_assets.evaluation.report import ReportError, build_report
from rlaif_assets.evaluation.signing import SIGNATURE, load_signer
from rlaif_assets.store.checkpoint_files import MARKER, folder_problems
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.fingerprint import file_sha256
from rlaif_assets.store.trace import trace_policy
from rlaif_assets.store.warehouse import Warehouse

STATEMENT = "lineage.intoto.json"
CARD = "README.md"
BOM = "bom.cdx.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:rlaif-assets:asset:v1"
SOURCE_URI = "urn:rlaif-assets:source"
CONTENT_HASH = "rlaifContentHash"  # of rows and weights: `sha256` would say that it is of a file's bytes
LIMITS = (
    "The labels are a model's, under its constitution, and carry what it does not see. The numbers are of the "
    "prompts that were held out of training, and of no others. Scores of a reward model can be over-optimised: read "
    "answers before you rely on it."
)
TOLD = ("inputs", "settings", "code_version", "git_commit", "git_dirty", "row_counts", "created_at", "passport")
RATES = ("harmless_rate", "helpful_rate", "lookalike_refusal_rate", "incoherent_rate")


class ExportError(ValueError):
    """A folder that cannot be written, or is no export."""


def export_policy(warehouse: Warehouse, name: str, folder: Path, key: Path | None = None) -> list[str]:
    """Writes the policy's files, the card, the ML-BOM and the statement to a new or empty folder, and signs it with the
    private key; returns the files' names.

    Adapters are merged when a policy is saved, so the weights are whole. Raises ExportError for a folder that holds
    something, StoreError for weights that are not as they were published, SigningError for a key that cannot sign.
    """
    signer = load_signer(key) if key else None
    found = trace_policy(warehouse, name)
    record = warehouse.get(found["snapshot_id"])
    weights = warehouse.weights(record)
    if problems := folder_problems(weights):
        raise StoreError(f"{name} is not as it was published: {problems[0]}; see `rlaif verify {name}`")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} is not an empty folder: name a new one")
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(weights.iterdir()):
        if path.name != MARKER:
            shutil.copyfile(path, folder / path.name)
    report = _test_report(warehouse, found["snapshot_id"])
    (folder / CARD).write_text(model_card(warehouse, found, report), encoding="utf-8")
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    _write(folder / BOM, ml_bom(found, files, report["policies"]["ppo"] if report else {}, LIMITS))
    files[BOM] = file_sha256(folder / BOM)
    _write(folder / STATEMENT, statement(found, files))
    if signer is None:
        return [*files, STATEMENT]
    signer.sign(folder, folder / SIGNATURE)
    return [*files, STATEMENT, SIGNATURE]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")


def statement(found: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """`found` as of `trace_policy`; `files`: SHA-256 by name."""
    own = found["snapshots"][-1]
    dependencies = [
        {
            "name": one["asset"],
            "uri": snapshot_uri(one["snapshot_id"]),
            "digest": {CONTENT_HASH: one["content_hash"]},
            "annotations": {name: one[name] for name in TOLD},
        }
        for one in found["snapshots"][:-1]
    ]
    if own["git_commit"]:
        dependencies.append(
            {
                "name": "rlaif-assets",
                "uri": SOURCE_URI,
                "digest": {"gitCommit": own["git_commit"]},
                "annotations": {"git_dirty": own["git_dirty"]},
            }
        )
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": {"asset": own["asset"], "settings": own["settings"], "inputs": own["inputs"]},
        "internalParameters": {"code_version": own["code_version"]},
        "resolvedDependencies": dependencies,
    }
    run = {
        "builder": {"id": "urn:rlaif-assets", "version": {"rlaif-assets": version("rlaif-assets")}},
        "metadata": {"invocationId": own["dagster_run_id"], "finishedOn": utc(own["created_at"])},
    }
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in files.items()],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"buildDefinition": definition, "runDetails": run},
    }


def verify_export(folder: Path) -> list[str]:
    """What is not as the statement says, without any database: changed, missing and added files. Its signature is
    checked by `signature_problems`. Raises ExportError where the folder has no statement that can be read."""
    try:
        told = json.loads((folder / STATEMENT).read_text(encoding="utf-8"))
        named = {one["name"]: one["digest"]["sha256"] for one in told["subject"]}
        kinds = told["_type"], told["predicateType"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{folder / STATEMENT} cannot be read as an in-toto statement: {error}") from error
    problems = [] if kinds == (STATEMENT_TYPE, PREDICATE_TYPE) else [f"{STATEMENT} is of the types {', '.join(kinds)}"]
    if not any(name.endswith(".safetensors") for name in named):
        problems.append(f"{STATEMENT} names no weights")
    for name, digest in named.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            problems.append(f"{name} is missing")
        elif file_sha256(path) != digest:
            problems.append(f"{name} has changed (sha256 differs from the one in {STATEMENT})")
    added = {path.name for path in folder.iterdir()} - named.keys() - {STATEMENT, SIGNATURE}
    return [*problems, *(f"{name} was added later" for name in sorted(added))]


def model_card(warehouse: Warehouse, found: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
    """In Hugging Face's form: what it is, data, constitution, judge, results with intervals, limits.

    `report`: as of `build_report`, of this policy.
    """
    from huggingface_hub import ModelCardData

    made = {one["asset"]: one for one in found["snapshots"]}
    names = [one["version"] for one in found["registry"]]
    title = names[0] if names else f"{found['snapshots'][-1]['asset']} {found['snapshot_id'][:8]}"
    head = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", tags=["rlaif", "constitutional-ai", "ppo"]
    )
    made_by = f"rlaif-assets {version('rlaif-assets')} with reinforcement learning from AI feedback"
    sections = {
        "Data": _data(made),
        "Constitution": _principles(warehouse, made),
        "Judge": _judge(made),
        "Results": _results(report),
        "Limits": [LIMITS],
    }
    parts = [
        f"---\n{head.to_yaml()}\n---\n\n# {title}\n",
        f"Snapshot `{found['snapshot_id']}`, made by {made_by}. `{STATEMENT}` names all that it was made from.\n",
        *(f"## {name}\n\n" + "\n".join(lines) + "\n" for name, lines in sections.items()),
    ]
    return "\n".join(parts)


def _data(made: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| asset | rows | snapshot |", "| --- | --- | --- |"]
    for asset, one in made.items():
        rows = ", ".join(f"{count:,} {table}" for table, count in one["row_counts"].items())
        lines.append(f"| {asset} | {rows or '-'} | `{one['snapshot_id']}` |")
    return lines


def _principles(warehouse: Warehouse, made: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if "judging_constitution" not in made:
        return ["No judging constitution is in its ancestry."]
    rows = warehouse.rows("judging_principles", made["judging_constitution"]["snapshot_id"])
    return [f"- {row['name']}: {' '.join(row['text'].split())}" for row in rows]


def _judge(made: Mapping[str, Mapping[str, Any]]) -> list[str]:
    passport = made.get("harmlessness_preferences", {}).get("passport")
    if not isinstance(passport, Mapping):
        return ["No judge's passport is in its ancestry."]
    lines = [f"Passport `{passport['passport_id']}` of {passport['date'][:10]}, judge `{passport['judge']}`.", ""]
    lines += ["| audit | measured | limit | passed |", "| --- | ---: | ---: | --- |"]
    for row in passport["audits"]:
        value = "-" if row["value"] is None else f"{row['value']:.4g}"
        lines.append(f"| {row['audit']} | {value} | {row['threshold']:.4g} | {'yes' if row['passed'] else 'no'} |")
    return lines


def _test_report(warehouse: Warehouse, snapshot_id: str) -> dict[str, Any] | None:
    """None where the home's evaluation is of another policy, or there is none."""
    try:
        report = build_report(warehouse, "test")
    except ReportError:
        return None
    return report if report["snapshots"].get("ppo_policy") == snapshot_id else None


def _results(report: Mapping[str, Any] | None) -> list[str]:
    if report is None:
        return ["Its home holds no evaluation of it."]
    lines = ["| on held-out prompts | base | SL-CAI | this policy |", "| --- | ---: | ---: | ---: |"]
    for measure in RATES:
        cells = []
        for policy in ("base", "sl_cai", "ppo"):
            value = report["policies"][policy][measure]
            low, high = report["policies"][policy]["intervals"].get(measure) or (None, None)
            told = "-" if value is None else f"{value:.1%}"
            cells.append(told if low is None or high is None else f"{told} [{low:.1%}, {high:.1%}]")
        lines.append(f"| {measure.replace('_', ' ')} | {' | '.join(cells)} |")
    return lines
