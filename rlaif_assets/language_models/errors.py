"""The error of model folders and of requests to a model. Light, so that it can be caught without importing torch."""


class ModelError(ValueError):
    """A model folder that cannot be used, or a request that a model cannot take: what is wrong and what to do."""
