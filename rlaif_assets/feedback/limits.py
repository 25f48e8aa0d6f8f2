"""The audits' limits, applied to verdicts that are stored: another limit needs no new judgement, and no new model.

What is measured belongs to `audits`. Nothing heavy is imported here, because a gate asks even where all is reused.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from rlaif_assets.settings import AuditsSettings

AT_LEAST = {"enough_pairs": "min_pairs", "letter_mass": "min_mass"}
AT_MOST = {"position_flip_rate": "max_flip_rate"}
ADVICE = (
    "Look at the labels and judgements. To train nevertheless move the limit, or --set audits.enforce=false (recorded "
    "with the model)."
)


def under_limits(verdicts: Iterable[Mapping[str, Any]], settings: AuditsSettings) -> list[dict[str, Any]]:
    """Rows of `audits.audit` as they would be under these settings; audits without a setting keep their verdict."""
    return [_under_limits(row, settings) for row in verdicts]


def failed_audits(verdicts: Iterable[Mapping[str, Any]]) -> str:
    """The verdicts that failed, each with what was measured, the limit and the setting that moves it; empty if none."""
    return ", ".join(_told(row) for row in verdicts if not row["passed"])


def _told(row: Mapping[str, Any]) -> str:
    name, value = row["audit"], row["value"]
    setting = (AT_LEAST | AT_MOST).get(name)
    return f"{name} ({'nothing to measure' if value is None else f'{value:.6g}'}, limit {row['threshold']:.6g}" + (
        f" by audits.{setting})" if setting else ")"
    )


def _under_limits(row: Mapping[str, Any], settings: AuditsSettings) -> dict[str, Any]:
    name, value = row["audit"], row["value"]
    if name not in AT_LEAST | AT_MOST:
        return dict(row)
    limit = getattr(settings, (AT_LEAST | AT_MOST)[name])
    passed = value is not None and (value >= limit if name in AT_LEAST else value <= limit)
    return {**row, "passed": passed, "threshold": limit}
