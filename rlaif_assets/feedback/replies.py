"""What an endpoint's reply says about options ("A", "B"; "1" to "9"): by its text, and by its log-probabilities.

A server's tokens are anything: " A", "(A", "A)", "**A**". Asking belongs to the judges.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif_assets.language_models.endpoint import Reply, ReplyToken
from rlaif_assets.language_models.errors import EndpointError

# How far the options that the server did not list could move a probability, at most, before the reading is refused.
MAX_DOUBT = 0.05
ROUNDING = 1e-3


@dataclass(frozen=True)
class OptionMasses:
    """`logprobs`: one per option, None where the server did not list it. `least`: the probability of the least token
    listed, which no other exceeds; `rest`: what the listed ones leave."""

    logprobs: tuple[float | None, ...]
    least: float
    rest: float

    @property
    def mass(self) -> float:
        return math.fsum(math.exp(value) for value in self.logprobs if value is not None)

    @property
    def unlisted(self) -> float:
        """The most that the options which are not listed have together."""
        return min(self.rest, self.logprobs.count(None) * self.least)

    @property
    def doubt(self) -> float:
        """The most that their share of all options can be."""
        return self.unlisted / (self.mass + self.unlisted) if self.unlisted else 0.0


def chosen_option(text: str, options: Sequence[str]) -> tuple[str, int] | None:
    """The option that a reply names, and where its name stands; None where it names none, or several.

    Read are, in this order: options in brackets, "(A)"; a reply that is the option alone, or begins with it and a mark
    ("A.", "B: because"); "answer is A", "option B". An "A" that is an article is never taken for an option.
    """
    name = "(" + "|".join(sorted(map(re.escape, options), key=len, reverse=True)) + ")"
    words = "answer|option|choice|response|rating"
    for pattern in (
        rf"\(\s*{name}(?![A-Za-z0-9])",
        rf"^[^A-Za-z0-9]*{name}(?=[.,:;!)\]*\"](?!\d)|\s*$|\s*\n)",
        rf"(?i:\b(?:{words})\b\W*(?:is\b\W*)?){name}(?![A-Za-z0-9])",
    ):
        found = list(re.finditer(pattern, text))
        if found:
            return (found[0][1], found[0].start(1)) if len({match[1] for match in found}) == 1 else None
    return None


def option_masses(reply: Reply, options: Sequence[str]) -> OptionMasses:
    """The options' probabilities at the token that decides, given what the reply says before it.

    That is the token that holds the option which the reply names; where it names none, the first one whose listed
    alternatives hold an option. Tokens that spell one option differently are summed. Raises EndpointError where there
    are no alternatives, no option among them, or where an option's log-probability is missing, not finite or above 0.
    """
    token = _deciding_token(reply, options)
    listed = dict.fromkeys(token.alternatives)
    if token.text not in {text for text, _ in listed}:
        listed[token.text, token.logprob] = None
    found: dict[str, list[float]] = {option: [] for option in options}
    for text, logprob in listed:
        option = _option_of(text, options)
        if option is not None:
            found[option].append(_checked(text, logprob))
    if not any(found.values()):
        raise EndpointError(f"the token {token.text!r} names an option and more: it cannot be read")
    sums = tuple(_logsumexp(found[option]) if found[option] else None for option in options)
    shares = [math.exp(p) for _, p in listed if isinstance(p, int | float) and -math.inf < p <= 0]
    masses = OptionMasses(sums, min(shares, default=1.0), max(0.0, 1 - math.fsum(shares)))
    if masses.mass > 1 + ROUNDING:
        raise EndpointError(f"the options' probabilities sum to {masses.mass:.3g}: they are no log-probabilities")
    return masses


def two_logprobs(reply: Reply, options: Sequence[str]) -> tuple[float, float, bool]:
    """Log-probabilities of two options, and whether one of them is a bound.

    An option that is not listed has at most the probability of the least listed alternative, and at most what the
    listed ones leave. It gets that bound, which draws p towards 0.5. Raises EndpointError where p could be off by more
    than MAX_DOUBT, and see `option_masses`.
    """
    masses = option_masses(reply, options)
    first, second = masses.logprobs
    if first is not None and second is not None:
        return first, second, False
    require_certain(masses, options)
    bound = math.log(max(masses.unlisted, 1e-12))
    return (bound if first is None else first), (bound if second is None else second), True


def require_certain(masses: OptionMasses, options: Sequence[str]) -> None:
    """Raises EndpointError where options that are not listed could have more than MAX_DOUBT of all options' share."""
    if masses.doubt > MAX_DOUBT:
        missing = [option for option, value in zip(options, masses.logprobs, strict=True) if value is None]
        raise EndpointError(
            f"not among the likeliest tokens: {', '.join(missing)}; their share may be {masses.doubt:.2f}: raise "
            "feedback_model.top_logprobs, or set feedback_model.verdicts=votes"
        )


def vote_logprobs(votes: Sequence[str | None], options: tuple[str, str]) -> tuple[float, float]:
    """Log shares of the votes, (n + 1/2) / (valid + 1) each, times the share of votes that are valid.

    The half (Krichevsky and Trofimov) keeps unanimous votes finite. Raises EndpointError where no vote is valid.
    """
    counts = [sum(vote == option for vote in votes) for option in options]
    valid = sum(counts)
    if not valid:
        raise EndpointError(f"none of {len(votes)} sampled verdicts names one of {', '.join(options)}")
    first, second = (math.log((count + 0.5) / (valid + 1) * valid / len(votes)) for count in counts)
    return first, second


def _deciding_token(reply: Reply, options: Sequence[str]) -> ReplyToken:
    if not reply.tokens:
        raise EndpointError("no log-probabilities in the reply: set feedback_model.verdicts=votes")
    text = "".join(token.text for token in reply.tokens)
    chosen = chosen_option(text, options)
    end = 0
    for token in reply.tokens:
        end += len(token.text)
        names = any(_option_of(text, options) for text, _ in token.alternatives)
        if (chosen is not None and chosen[1] < end) or (chosen is None and names):
            if not token.alternatives:
                raise EndpointError("no alternatives beside the token that names an option: top_logprobs are needed")
            return token
    raise EndpointError(f"no option in the reply {' '.join(text.split())[:60]!r}, nor among the likeliest tokens")


def _option_of(token: str, options: Sequence[str]) -> str | None:
    """The option that a token spells: itself with marks and blanks around it, of which tokenizers have their own."""
    core = re.fullmatch(r"[^A-Za-z0-9]*([A-Za-z0-9]+)[^A-Za-z0-9]*", token)
    return core[1] if core and core[1] in options else None


def _checked(text: str, logprob: object) -> float:
    if not isinstance(logprob, int | float) or not math.isfinite(logprob):
        raise EndpointError(f"the log-probability of {text!r} is {logprob}, not a finite number")
    if logprob > ROUNDING:
        raise EndpointError(f"the log-probability of {text!r} is {logprob:g}, above 0")
    return min(float(logprob), 0.0)


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
