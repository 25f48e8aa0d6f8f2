"""The error of model folders and of what is asked of a model. Kept apart so that it can be caught without importing torch."""


class ModelError(ValueError):
    """A model folder that cannot be used, or a request that the model cannot take. Says what is wrong and what to do."""
