"""The date that re-judging is decided from. Light, because a stage's key asks for it even where all is reused."""

from datetime import UTC, datetime

from rlaif_assets.settings import HarmlessnessPreferencesSettings


def decided_as_of(settings: HarmlessnessPreferencesSettings) -> str | None:
    """The setting, else today (UTC); None where nothing is decided by it.

    A day, not a moment: a run that died and is started again on the same day goes on with the same questions, and what
    was judged again for a day is not judged a third time for it.
    """
    if settings.max_age_days is None and not settings.drift_sample:
        return None
    return settings.as_of or datetime.now(UTC).date().isoformat()
