"""The error of the trainers. Errors about a model's files are `language_models.local.ModelError`."""


class TrainingError(RuntimeError):
    """Training cannot go on, or its input does not allow it. The message says what is wrong, where, and what to do."""
