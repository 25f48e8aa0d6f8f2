"""The error of judges. Light, so that it can be caught without importing torch."""


class JudgeStoppedError(RuntimeError):
    """The judge ended early. The message says why and what to do; what it yielded before is good."""
