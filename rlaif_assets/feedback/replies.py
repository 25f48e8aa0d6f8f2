"""What an endpoint's reply says about options ("A", "B"; "1" to "9"): by its text, and by its log-probabilities.

A server's tokens are anything: " A", "(A", "A)", "**A**". Asking belongs to the judges.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from rlaif_assets.language_models.endpoint import Reply, ReplyToken
from rlaif_assets.language_models.errors import EndpointError, QuestionError

# How far the options that the server did not list could move a probability, at most, before the reading is refused.
MAX_DOUBT = 0.05
ROUNDING = 1e-3
RULES_VERSION = 4  # of what is read from a reply: part of the judges' fingerprints

RESTATED = 20  # characters of an option's text after its name that show that a reply repeats it
_NOUN = r"(?:option|response|answer|assistant|choice)"
_BETTER = r"(?:better|best|preferable|preferred|right|correct|safer|safest|(?:less|least) harmful)"
_MARKS = r"[^A-Za-z0-9]*"
# What may stand before a name so that it is chosen, and what after it: a reply may be cut off anywhere.
_LEAD = re.compile(
    rf"{_MARKS}(?:sure{_MARKS})?(?:(?:so|thus|therefore|hence|(?:based on|given|according to) [^,.:]{{1,60}}),?\s+)?"
    rf"(?:i (?:think|believe)(?: that)?\s+)?(?:"
    rf"(?:(?:the|my)\s+)?(?:(?:final|{_BETTER})\s+)?(?:{_NOUN}|verdict|pick|preference|rating|score|one)"
    rf"(?:\s+(?:is|would be|should be))?|"
    rf"i(?:'d|'ll|\u2019d|\u2019ll| would| will| must| have to)?\s+"
    rf"(?:choose|pick|select|prefer|go with|rate (?:it|this)(?: {_NOUN})?)|"
    rf"it is|it's|it\u2019s){_MARKS}(?:{_NOUN}{_MARKS})?",
    re.IGNORECASE,
)
_NOTHING = re.compile(rf"{_MARKS}(?:{_NOUN}\b{_MARKS})?", re.IGNORECASE)
_REASON = r"[,:;(\u2013\u2014-]?\s*(?:because|since)\b"
_STOPS = re.compile(rf"\s*(?:[.!]?\s*$|[.!]?[^\S\n]*\n|{_REASON})", re.IGNORECASE)
_ENDS = re.compile(rf"{_STOPS.pattern}|\s*,?\s*as (?:it|this|that)\b", re.IGNORECASE)
_TEXT_BELOW = re.compile(r"[.!]?\s*\n\s*\S")
_PRAISE = re.compile(
    rf"\s+(?:is|would be)\s+(?:clearly\s+|much\s+)?(?:(?:the|my)\s+)?"
    rf"(?:{_BETTER}(?:\s+(?:{_NOUN}|one))?|{_NOUN})[.!]?\s*$",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"\s+(?!(?:is|was|seems|looks|would|because|since|as|over|and|or|nor|but|for)\b)[A-Za-z]")


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


def chosen_option(text: str, options: Sequence[str], question: str = "") -> tuple[str, int] | None:
    """The option that a reply chooses, and where its name stands; None where it names none or several, or says
    something else about the one that it names.

    Read is a name in any brackets or marks: alone or with a reason ("A.", "(B) because"); after words of choosing
    alone ("The answer is A", "I choose option B"); before words of choosing that end the reply ("(B) is better."); or
    followed by nothing but its own text in the `question`, "(B) " before it there. Denials, remarks, headings ("(A)
    tells how", "A: Harmful", "Response A" above a line) choose nothing: a reply may be cut off before the other option.
    An "A" that is an article is no name.
    """
    for option in options:
        repeated = re.match(rf"{_MARKS}{re.escape(option)}\)?\s+(\S.*)", text, re.DOTALL)
        said = " ".join(repeated[1].split()) if repeated else ""
        one = not any(f"({other})" in said for other in options)
        if one and len(said) >= RESTATED and f"({option}) {said}" in " ".join(question.split()):
            return option, text.index(option)
    names = "|".join(sorted(map(re.escape, options), key=len, reverse=True))
    standing = (
        rf"(?<![A-Za-z0-9'\u2019\u2212])(?<!\d[.,/])(?<!\d -)(?<!^-)(?<!out of )(?:{names})"
        r"(?![A-Za-z0-9]|['\u2019][a-z]|[.,]\d)"
    )
    found = [match for match in re.finditer(standing, text) if not _is_article(text, match)]
    if len({match[0] for match in found}) != 1:
        return None
    first = found[0]
    return (first[0], first.start()) if _chooses(text[: first.start()], text[first.end() :], options[-1]) else None


def _is_article(text: str, match: re.Match[str]) -> bool:
    """A bare "A" before a word, unless the word before it says that it is a name."""
    if match[0] != "A" or re.search(rf"[(\[*\"'_`]$|\b{_NOUN}\s+$", text[: match.start()], re.IGNORECASE):
        return False
    return _ARTICLE.match(text, match.end()) is not None


def _chooses(lead: str, tail: str, last: str) -> bool:
    """Whether a name after `lead` and before `tail` is a choice. `last`: the last option, of which a scale is told
    ("8/9")."""
    tail = tail.lstrip(")]*\"'_`")
    tail = re.sub(rf"^\s*(?:/|out of)\s*{re.escape(last)}(?![\d.])", "", tail)
    if _NOTHING.fullmatch(lead):
        heading = any(map(str.isalpha, lead)) and _TEXT_BELOW.match(tail)
        return not heading and (_STOPS.match(tail) or _PRAISE.match(tail)) is not None
    return _LEAD.fullmatch(lead) is not None and _ENDS.match(tail) is not None


def option_masses(reply: Reply, options: Sequence[str], question: str = "") -> OptionMasses:
    """The options' probabilities at the token that decides, given what the reply says before it.

    That is the token that holds the option which the reply chooses. Tokens that spell one option differently are
    summed. Raises QuestionError where it chooses none, where there are no alternatives, no option among them, or where
    an option's log-probability is missing, not finite or above 0.
    """
    token = _deciding_token(reply, options, question)
    listed = dict.fromkeys(token.alternatives)
    if token.text not in {text for text, _ in listed}:
        listed[token.text, token.logprob] = None
    found: dict[str, list[float]] = {option: [] for option in options}
    for text, logprob in listed:
        option = _option_of(text, options)
        if option is not None:
            found[option].append(_checked(text, logprob))
    if not any(found.values()):
        raise QuestionError(f"the token '{token.text}' names an option and more: it cannot be read")
    sums = tuple(_logsumexp(found[option]) if found[option] else None for option in options)
    shares = [math.exp(p) for _, p in listed if isinstance(p, int | float) and -math.inf < p <= 0]
    masses = OptionMasses(sums, min(shares, default=1.0), max(0.0, 1 - math.fsum(shares)))
    if masses.mass > 1 + ROUNDING:
        raise QuestionError(f"the options' probabilities sum to {masses.mass:.3g}: they are no log-probabilities")
    return masses


def two_logprobs(reply: Reply, options: Sequence[str], question: str = "") -> tuple[float, float, bool]:
    """Log-probabilities of two options, and whether one of them is a bound.

    An option that is not listed has at most the probability of the least listed alternative, and at most what the
    listed ones leave. It gets that bound, which draws p towards 0.5. Raises QuestionError where p could be off by more
    than MAX_DOUBT, and see `option_masses`.
    """
    masses = option_masses(reply, options, question)
    first, second = masses.logprobs
    if first is not None and second is not None:
        return first, second, False
    require_certain(masses, options)
    bound = math.log(max(masses.unlisted, 1e-12))
    return (bound if first is None else first), (bound if second is None else second), True


def require_certain(masses: OptionMasses, options: Sequence[str]) -> None:
    """Raises QuestionError where options that are not listed could have more than MAX_DOUBT of all options' share."""
    if masses.doubt > MAX_DOUBT:
        missing = [option for option, value in zip(options, masses.logprobs, strict=True) if value is None]
        raise QuestionError(
            f"not among the likeliest tokens: {', '.join(missing)}; their share may be {masses.doubt:.2f}: raise "
            "feedback_model.top_logprobs, or set feedback_model.verdicts=votes"
        )


def vote_logprobs(votes: Sequence[str | None], options: tuple[str, str]) -> tuple[float, float]:
    """Log shares of the votes, (n + 1/2) / (valid + 1) each, times the share of votes that are valid.

    The half (Krichevsky and Trofimov) keeps unanimous votes finite. Raises QuestionError where no vote is valid.
    """
    counts = [sum(vote == option for vote in votes) for option in options]
    valid = sum(counts)
    if not valid:
        raise QuestionError(f"none of {len(votes)} sampled verdicts names one of {', '.join(options)}")
    first, second = (math.log((count + 0.5) / (valid + 1) * valid / len(votes)) for count in counts)
    return first, second


def _deciding_token(reply: Reply, options: Sequence[str], question: str) -> ReplyToken:
    if not reply.tokens and not reply.text.strip():
        raise QuestionError("the reply is empty")
    if not reply.tokens:
        raise EndpointError("no log-probabilities in the reply: set feedback_model.verdicts=votes")
    text = "".join(token.text for token in reply.tokens)
    chosen = chosen_option(text, options, question)
    if chosen is None:
        shown = " ".join(text.split())
        raise QuestionError(f"the reply chooses none of {', '.join(options)}, or names several: '{shown}'")
    ends = accumulate(len(token.text) for token in reply.tokens)
    token = next(token for token, end in zip(reply.tokens, ends, strict=True) if chosen[1] < end)
    if not token.alternatives:
        raise QuestionError("no alternatives beside the token that names an option: top_logprobs are needed")
    return token


def _option_of(token: str, options: Sequence[str]) -> str | None:
    """The option that a token spells: itself with marks and blanks around it, of which tokenizers have their own."""
    core = re.fullmatch(r"[^A-Za-z0-9]*([A-Za-z0-9]+)[^A-Za-z0-9]*", token)
    return core[1] if core and core[1] in options else None


def _checked(text: str, logprob: object) -> float:
    if not isinstance(logprob, int | float) or not math.isfinite(logprob):
        raise QuestionError(f"the log-probability of '{text}' is {logprob}, not a finite number")
    if logprob > ROUNDING:
        raise QuestionError(f"the log-probability of '{text}' is {logprob:g}, above 0")
    return min(float(logprob), 0.0)


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
