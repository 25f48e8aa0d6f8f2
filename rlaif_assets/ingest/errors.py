"""What the readers raise. Rows that are refused are not errors: they become `records.Rejection`."""


class IngestError(ValueError):
    """An input that cannot be read at all. The message says what is wrong, where (file and line) and what to do."""


class RowError(ValueError):
    """Why one row is refused. Readers catch it and keep the row as a `Rejection` with this reason."""
