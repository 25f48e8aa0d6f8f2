"""The errors of the store. Each says what is wrong, where, and what to do."""


class StoreError(RuntimeError):
    """The warehouse or a checkpoint folder cannot be used, or was given what it does not keep."""


class DamagedError(StoreError):
    """What is stored is not what this program stores: something else has written there."""


class TrackingError(RuntimeError):
    """MLflow refused or could not be reached. Tracking is a record, not a result: training goes on without it."""
