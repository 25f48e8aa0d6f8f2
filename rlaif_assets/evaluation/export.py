"""A policy as a folder that transformers and vLLM load, with its model card, its ML-BOM and its lineage as an in-toto
statement, signed where a key is given.

The statement (in-toto Statement v1 with SLSA provenance v1 as predicate, https://slsa.dev/spec/v1.1/provenance) names
every other file of the folder by its SHA-256, and the policy and every snapshot that it was made from by its content
hash. The signature, written last, covers all of them.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlaif_assets.evaluation.as_published import record_problems
from rlaif_assets.evaluation.limits import LIMITS, simulated
from rlaif_assets.evaluation.made_from import learned_from
from rlaif_assets.evaluation.ml_bom import ml_bom, snapshot_uri, utc
from rlaif_assets.evaluation.report import NAMES, SUBJECTS, build_report, evaluation_of
from rlaif_assets.evaluation.signing import SIGNATURE, load_signer
from rlaif_assets.store.checkpoint_files import read_marker, require_language_model
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.fingerprint import combine_hashes, file_sha256, folder_fingerprint
from rlaif_assets.store.lineage import ancestry
from rlaif_assets.store.trace import trace_policy
from rlaif_assets.store.warehouse import Warehouse, snapshot_id

STATEMENT = "lineage.intoto.json"
CARD = "README.md"
BOM = "bom.cdx.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:rlaif-assets:asset:v1"
SOURCE_URI = "urn:rlaif-assets:source"
CONTENT_HASH = "rlaifContentHash"  # of rows and weights: `sha256` would say that it is of a file's bytes
TOLD = ("inputs", "settings", "code_version", "git_commit", "git_dirty", "row_counts", "created_at", "passport")
RATES = ("harmless_rate", "helpful_rate", "lookalike_refusal_rate", "incoherent_rate")


class ExportError(ValueError):
    """A folder that cannot be written, or is no export."""


def export_policy(warehouse: Warehouse, name: str, folder: Path, key: Path | None = None) -> list[str]:
    """Writes the policy's files, the card, the ML-BOM and the statement to a new or empty folder, and signs it with the
    private key; returns the files' names.

    Adapters are merged when a policy is saved, so the weights are whole. All is written beside the folder and renamed,
    so a failure leaves nothing. Raises ExportError for a folder that holds something, StoreError for rows or weights
    that are not as they were published and for what is no causal language model, SigningError for a key that cannot
    sign.
    """
    signer = load_signer(key) if key else None
    folder = folder.resolve()
    found = trace_policy(warehouse, name)
    record = warehouse.get(found["snapshot_id"])
    weights = warehouse.weights(record)
    evaluation = evaluation_of(warehouse, record) if record.asset in SUBJECTS else None
    told = [*ancestry(warehouse, record.snapshot_id), *([evaluation] if evaluation else [])]
    if problems := [problem for one in told for problem in record_problems(warehouse, one)]:
        raise StoreError(f"what {name}'s card would tell is not as it was published: {problems[0]}; see `rlaif verify`")
    require_language_model(weights, name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} is not an empty folder: name a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        new = Path(temporary) / folder.name
        new.mkdir()
        for file in sorted((read_marker(weights) or {})["files"]):
            shutil.copyfile(weights / file, new / file)
        report = build_report(warehouse, "test", evaluation) if evaluation else None
        (new / CARD).write_text(model_card(warehouse, found, report), encoding="utf-8")
        files = {path.name: file_sha256(path) for path in sorted(new.iterdir())}
        measured = report["policies"].get(SUBJECTS[record.asset], {}) if report else {}
        _write(new / BOM, ml_bom(found, files, measured, [LIMITS, *simulated(found["snapshots"])]))
        files[BOM] = file_sha256(new / BOM)
        _write(new / STATEMENT, statement(found, files))
        if problems := verify_export(new):
            raise StoreError(f"{name} changed while it was copied: {problems[0]}")
        if signer is not None:
            signer.sign(new, new / SIGNATURE)
        new.rename(folder)
    return [*files, STATEMENT] if signer is None else [*files, STATEMENT, SIGNATURE]


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
        "byproducts": [
            {
                "name": own["asset"],
                "uri": snapshot_uri(own["snapshot_id"]),
                "digest": {CONTENT_HASH: own["content_hash"]},
                "annotations": {"key": own["key"], "table_hashes": own["table_hashes"]},
            }
        ],
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
        if wrong := [one for one in (*named, *kinds) if not isinstance(one, str)]:
            raise TypeError(f"{wrong[0]!r} is not text")
        known = kinds == (STATEMENT_TYPE, PREDICATE_TYPE)
        own = _policy_problems(folder, told["predicate"]) if known else []
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ExportError(f"{folder / STATEMENT} cannot be read as an in-toto statement: {error}") from error
    problems = [] if known else [f"{STATEMENT} is of the types {', '.join(kinds)}"]
    if not any(name.endswith(".safetensors") for name in named):
        problems.append(f"{STATEMENT} names no weights")
    for name, digest in named.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            problems.append(f"{name} is missing")
        elif file_sha256(path) != digest:
            problems.append(f"{name} has changed (sha256 differs from the one in {STATEMENT})")
    added = {path.name for path in folder.iterdir()} - named.keys() - {STATEMENT, SIGNATURE}
    problems += [f"{name} was added later" for name in sorted(added)]
    return problems or own


def _policy_problems(folder: Path, predicate: Mapping[str, Any]) -> list[str]:
    """The weights' part of the policy's content hash is computed anew, and its id with it."""
    (told,) = predicate["runDetails"]["byproducts"]
    key, hashes = told["annotations"]["key"], told["annotations"]["table_hashes"]
    if snapshot_uri(snapshot_id(key, told["digest"][CONTENT_HASH])) != told["uri"]:
        return [f"{STATEMENT}: the policy's id does not follow from its key and content hash"]
    try:
        weights = folder_fingerprint(folder)
    except FileNotFoundError:
        weights = None
    if combine_hashes(hashes, weights) != told["digest"][CONTENT_HASH]:
        return [f"the model files are not those of {told['name']} {told['uri'].rpartition(':')[2]}"]
    return []


def model_card(warehouse: Warehouse, found: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
    """In Hugging Face's form: what it is, data, constitution, judge, results with intervals, limits.

    `report`: as of `build_report`, of this policy.
    """
    from huggingface_hub import ModelCardData

    made = learned_from(found["snapshots"], found["snapshot_id"])
    names = [one["version"] for one in found["registry"]]
    asset = found["snapshots"][-1]["asset"]
    title = names[0] if names else f"{asset} {found['snapshot_id'][:8]}"
    tags = ["rlaif", "constitutional-ai", *(["ppo"] if asset == "ppo_policy" else [])]
    head = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=tags)
    made_by = f"rlaif-assets {version('rlaif-assets')} with reinforcement learning from AI feedback"
    sections = {
        "Data": _data(found["snapshots"]),
        "Constitution": _principles(warehouse, made),
        "Judge": _judge(made),
        "Results": _results(report, asset),
        "Limits": [" ".join([LIMITS, *simulated(found["snapshots"])])],
    }
    parts = [
        f"---\n{head.to_yaml()}\n---\n\n# {title}\n",
        f"Snapshot `{found['snapshot_id']}`, made by {made_by}. `{STATEMENT}` names all that it was made from.\n",
        *(f"## {name}\n\n" + "\n".join(lines) + "\n" for name, lines in sections.items()),
    ]
    return "\n".join(parts)


def _data(snapshots: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| asset | rows | snapshot |", "| --- | --- | --- |"]
    for one in snapshots:
        rows = ", ".join(f"{count:,} {table}" for table, count in one["row_counts"].items())
        lines.append(f"| {one['asset']} | {rows or '-'} | `{one['snapshot_id']}` |")
    return lines


def _principles(warehouse: Warehouse, made: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Those of the critiques and revisions, and those of the judge, each where the policy learned from it."""
    lines: list[str] = []
    if one := made.get("critique_constitution"):
        rows = warehouse.rows("critique_principles", one["snapshot_id"])
        told = [(row["name"], f"{row['critique_request']} {row['revision_request']}") for row in rows]
        lines += ["Of its critiques and revisions:", "", *_listed(told), ""]
    if one := made.get("judging_constitution"):
        rows = warehouse.rows("judging_principles", one["snapshot_id"])
        lines += ["Of the judge of its labels:", "", *_listed([(row["name"], row["text"]) for row in rows])]
    return lines or ["No constitution is in its ancestry."]


def _listed(principles: Sequence[tuple[str, str]]) -> list[str]:
    return [f"- {name}: {' '.join(text.split())}" for name, text in principles]


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


def _results(report: Mapping[str, Any] | None, asset: str) -> list[str]:
    """Its numbers beside those of what it was trained from."""
    if report is None:
        return ["Its home holds no evaluation of it."]
    subjects = list(SUBJECTS.values())[: list(SUBJECTS).index(asset) + 1]
    heads = [*(NAMES[one] for one in subjects[:-1]), "this policy"]
    lines = [f"| on held-out prompts | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for measure in RATES:
        cells = []
        for policy in subjects:
            value = report["policies"][policy][measure]
            low, high = report["policies"][policy]["intervals"].get(measure) or (None, None)
            told = "-" if value is None else f"{value:.1%}"
            cells.append(told if low is None or high is None else f"{told} [{low:.1%}, {high:.1%}]")
        lines.append(f"| {measure.replace('_', ' ')} | {' | '.join(cells)} |")
    return lines
