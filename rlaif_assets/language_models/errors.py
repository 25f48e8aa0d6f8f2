"""The errors of models and of requests to them. Light, so that they can be caught without importing torch."""


class ModelError(ValueError):
    """A model folder that cannot be used, or a request that a model cannot take: what is wrong and what to do."""


class EndpointError(ModelError):
    """One request that an endpoint did not answer as it should: one line, never with the key."""


class QuestionError(EndpointError):
    """The endpoint is there, and this one question it refuses, or answers with what cannot be read."""


class EndpointStoppedError(ModelError):
    """No further request will be made: the budget is spent, too many failed in a row, or none can succeed."""
