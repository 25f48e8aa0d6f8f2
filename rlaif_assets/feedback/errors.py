"""The errors of feedback, apart from what raises them: who catches one need not import torch."""


class JudgeStoppedError(RuntimeError):
    """The judge ended early. The message says why and what to do; what it yielded before is good."""
