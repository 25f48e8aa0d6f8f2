"""The bill of materials of an exported policy: a CycloneDX 1.6 ML-BOM (https://cyclonedx.org/capabilities/mlbom/).

The policy is a machine-learning-model component with its files, results and limits; every snapshot of its ancestry is
a component too, models as such and rows as data, with what each was made from as dependencies.
"""

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any


def snapshot_uri(snapshot_id: str) -> str:
    return f"urn:rlaif-assets:snapshot:{snapshot_id}"


def utc(timestamp: str) -> str:
    """RFC 3339 with "Z", as in-toto asks for."""
    return datetime.fromisoformat(timestamp).astimezone(UTC).isoformat().replace("+00:00", "Z")


def ml_bom(
    found: Mapping[str, Any], files: Mapping[str, str], measured: Mapping[str, Any], limits: Sequence[str]
) -> dict[str, Any]:
    """`found` as of `trace_policy`; `files`: SHA-256 by name; `measured`: the policy's numbers as of `build_report`."""
    *ancestors, own = found["snapshots"]
    components = [_component(one) for one in ancestors]
    names = [one["version"] for one in found["registry"]]
    hashed = [
        {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}
        for name, digest in files.items()
    ]
    card = {
        "modelParameters": {
            "task": "text-generation",
            "datasets": [{"ref": one["bom-ref"]} for one in components if one["type"] == "data"],
        },
        "quantitativeAnalysis": {"performanceMetrics": _metrics(measured)},
        "considerations": {"technicalLimitations": list(limits)},
    }
    policy = _component(own) | {"name": names[0] if names else own["asset"], "components": hashed, "modelCard": card}
    tool = {"type": "application", "name": "rlaif-assets", "version": version("rlaif-assets")}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, snapshot_uri(own["snapshot_id"])).urn,
        "version": 1,
        "metadata": {"timestamp": utc(own["created_at"]), "tools": {"components": [tool]}, "component": policy},
        "components": components,
        "dependencies": [
            {"ref": snapshot_uri(one["snapshot_id"]), "dependsOn": sorted(map(snapshot_uri, one["inputs"].values()))}
            for one in found["snapshots"]
        ],
    }


def _component(one: Mapping[str, Any]) -> dict[str, Any]:
    model = one["path"] is not None or "external_models" in one["row_counts"]
    properties = {"content_hash": one["content_hash"], "code_version": one["code_version"]}
    properties |= {f"rows:{table}": count for table, count in one["row_counts"].items()}
    return {
        "type": "machine-learning-model" if model else "data",
        "bom-ref": snapshot_uri(one["snapshot_id"]),
        "name": one["asset"],
        "version": one["snapshot_id"],
        "properties": [{"name": f"rlaif-assets:{name}", "value": str(value)} for name, value in properties.items()],
    }


def _metrics(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    metrics = []
    for name, value in measured.items():
        if isinstance(value, int | float):
            metric: dict[str, Any] = {"type": name, "value": f"{value:.6g}", "slice": "held-out test prompts"}
            if bounds := measured["intervals"].get(name):
                metric["confidenceInterval"] = dict(
                    zip(("lowerBound", "upperBound"), (f"{bound:.6g}" for bound in bounds), strict=True)
                )
            metrics.append(metric)
    return metrics
