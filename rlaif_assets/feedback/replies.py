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
LEAST_MASS = 1e-6  # servers write a very small probability as exp(-9999)
RULES_VERSION = 7  # of what is read from a reply: part of the judges' fingerprints

RESTATED = 20  # characters of an option's text after its name that show that a reply repeats it
_NOUN = r"(?:option|response|answer|assistant|choice)"
_BETTER = r"(?:better|best|preferable|preferred|right|correct)"
# Marks that may stand around a name. No other letter or sign may: it may deny ("\u4e0dA", "\u2260 A", "~~A~~").
_MARK = r"\s()\[\]{}\uff08\uff09\u3010\u3011*#_>`\"'\u2018\u2019\u201c\u201d:\uff1a.,\u3002\u0120\u010a\u2581-"
_MARKS = rf"[{_MARK}]*"
_CLOSING = re.compile(r"(?:[.\u3002!]?[)\]}\uff09\u3011*\"'\u2019\u201d`_]+)*")
_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")
_BOX = re.compile(r"\$?\\boxed\{|\}\$")
# What may stand before a name so that it is chosen: words that choose it. And what after it: a reply may be cut off.
_LEAD = re.compile(
    rf"{_MARKS}(?:json{_MARKS}|sure[!,.]?{_MARKS})?(?:(?:so|thus|therefore|hence|"
    rf"(?:based on|given|according to) (?:the |this |that )?(?:given |above )?"
    rf"(?:principle|criteri(?:on|a)|question)),?\s+)?"
    rf"(?:i (?:think|believe)(?: that)?\s+)?(?:"
    rf"(?:(?:the|my)\s+)?(?:(?:final|{_BETTER})[\s_]+)?(?:{_NOUN}|verdict|winner|pick|preference|rating|score|one)"
    rf"(?:\s+(?:is|would be|should be)\b|(?={_MARKS}:))|"
    rf"i(?:'d|'ll|\u2019d|\u2019ll| would| will| must| have to)?\s+"
    rf"(?:choose|pick|select|prefer|go with|rate (?:it|this)(?: {_NOUN})?(?: an?)?)|"
    rf"it is|it's|it\u2019s){_MARKS}(?:{_NOUN}{_MARKS})?",
    re.IGNORECASE,
)
_NOTHING = re.compile(rf"{_MARKS}(?:sure[!,.]?{_MARKS})?(?:{_NOUN}\b{_MARKS})?", re.IGNORECASE)
_REASON = r"[,:;(\u2013\u2014-]?\s*(?:because|since)\b"
# Below a name alone may stand its reasons, if they say that they are, the verdict once more, or another turn. Anything
# else may be a remark under a heading, and the other option may follow.
_BELOW = (
    rf"[^\S\n]*\n\s*(?:{_MARKS}(?:because|since|explanation|reason(?:s|ing)?|rationale|justification|human|user)\b)"
)
_STOPS = re.compile(rf"\s*(?:[.!\u3002]?\s*$|{_REASON}|[.!]?{_BELOW})", re.IGNORECASE)
_ENDS = re.compile(rf"{_STOPS.pattern}|\s*,?\s*as (?:it|this|that)\b|[.!]?[^\S\n]*\n", re.IGNORECASE)
_PRAISE = re.compile(
    rf"\s+(?:is|would be)\s+(?:clearly\s+|much\s+)?(?:(?:the|my)\s+)?"
    rf"(?:{_BETTER}(?:\s+(?:{_NOUN}|one))?|{_NOUN})[.!]?\s*$",
    re.IGNORECASE,
)
_PRAISE_BECAUSE = re.compile(
    rf"\s+is\s+(?:clearly\s+|much\s+)?(?:the\s+)?(?:better|best|preferable|preferred)(?:\s+(?:{_NOUN}|one))?"
    r",?\s+(?:because|since)\b(.*)",
    re.IGNORECASE | re.DOTALL,
)
# An object whose first key says that a verdict follows. "response" and "option" may be the heading of a remark.
_JSON_LEAD = re.compile(
    rf"\s*(?:`+json)?\s*\{{\s*\"(?:(?:final|{_BETTER})_{_NOUN}|answer|choice|verdict|winner|pick|preference|preferred)\""
    r"\s*:\s*\"[(\[]?",
    re.IGNORECASE,
)
_JSON_REASON = re.compile(
    r"[\s)\]\"]*,\s*\"(?:reason(?:ing)?|explanation|rationale|justification)\"\s*:(.*)", re.DOTALL
)
# In a reason: what may take the choice back.
_DOUBT = re.compile(
    r"\b(?:but|however|although|though|if|unless|instead|yet|otherwise|worse|(?:the|an)?other|second|former|latter)\b",
    re.IGNORECASE,
)
_AGAIN = re.compile(r"[.!]?[^\S\n]*\n\s*(\S.*)", re.DOTALL)
_ARTICLE = re.compile(
    r"[^\S\n]+(?!(?:is|was|seems|looks|would|because|since|as|over|and|or|nor|but|for)\b)[A-Za-z]", re.IGNORECASE
)


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
        """The most that their share of all options can be; all, where next to nothing is on those that are listed."""
        if None in self.logprobs and self.mass < LEAST_MASS:
            return 1.0
        return self.unlisted / (self.mass + self.unlisted) if self.unlisted else 0.0


def chosen_by(reply: Reply, options: Sequence[str], question: str = "") -> tuple[str, int] | None:
    """`chosen_option` of the reply's text; None where a limit cut it off at the name, which may be the beginning of a
    word, or within the words that choose it."""
    found = chosen_option(reply.text, options, question)
    if found is None or not reply.cut:
        return found
    at_name = found[1] + len(found[0]) == len(reply.text)
    return None if at_name or _goes_on(reply.text, found) else found


def _goes_on(text: str, found: tuple[str, int]) -> bool:
    """Whether what a limit cut off may take the choice back: after `(B) is better` without a full stop ("than a lie"),
    and within its reason."""
    tail = _unboxed(text)[found[1] + len(found[0]) :]
    tail = tail[_closing(tail) :].rstrip()
    praise = _PRAISE.match(tail)
    return bool((praise and tail[-1:].isalpha()) or _PRAISE_BECAUSE.match(tail) or _JSON_REASON.match(tail))


def _unboxed(text: str) -> str:
    """LaTeX's boxes as blanks, so that every place stays."""
    return _BOX.sub(lambda box: " " * len(box[0]), text)


def chosen_option(text: str, options: Sequence[str], question: str = "") -> tuple[str, int] | None:
    """The option that a reply chooses, and where its name stands; None where it names none or several, or says
    something else about the one that it names.

    Read is a name in any brackets or marks: alone or with a reason ("A.", "(B) because"); after words of choosing
    alone ("The answer is A", "I choose option B", '{"answer": "A"}'); before words of choosing, where nothing or a
    reason without a "but" follows them ("(B) is better."); or followed by nothing but its own text in the `question`,
    "(B) " before it there. A name in LaTeX's box is read as one in brackets. Denials, remarks, headings ("(A) tells
    how", "A: Harmful", "A" above a line that is not called a reason) choose nothing: a reply may be cut off before the
    other option. Neither does what is called harmful or safe: the principle may ask for either. Letters and signs of
    other scripts around a name may deny it. An "A" that is an article is no name.
    """
    thought = _THOUGHT.match(text)
    if thought:
        found_after = chosen_option(text[thought.end() :], options, question)
        return found_after and (found_after[0], found_after[1] + thought.end())
    if options[0].isdigit() and re.search(r"[-\u2013+<>~.]\s*\$?\\boxed", text):
        return None  # a sign before the box
    text = _unboxed(text)
    for option in options:
        repeated = re.match(rf"{_MARKS}{re.escape(option)}\)?\s+(\S.*)", text, re.DOTALL)
        said = " ".join(repeated[1].split()) if repeated else ""
        one = not any(f"({other})" in said for other in options)
        if one and len(said) >= RESTATED and f"({option}) {said}" in " ".join(question.split()):
            return option, text.index(option)
    names = "|".join(sorted(map(re.escape, options), key=len, reverse=True))
    standing = (
        rf"(?<![^\W_\u0120\u010a])(?<!['\u2019\u2212])(?<!\d[.,/])(?<!\d -)(?<!out of )(?:{names})"
        r"(?![^\W_]|['\u2019][a-z]|[.,]\d)"
    )
    if options[0].isdigit():
        standing = rf"(?<![-\u2013+<>\u2264\u2265~.]){standing}"
    found = [match for match in re.finditer(standing, text) if not _is_article(text, match)]
    if len({match[0] for match in found}) != 1:
        return None
    first = found[0]
    chosen = _chooses(text[: first.start()], text[first.end() :], first[0], options, question)
    return (first[0], first.start()) if chosen else None


def _is_article(text: str, match: re.Match[str]) -> bool:
    """A bare "A" before a word, unless the word before it says that it is a name."""
    if match[0] != "A" or re.search(rf"[(\[*\"'_`]$|\b{_NOUN}\s+$", text[: match.start()], re.IGNORECASE):
        return False
    return _ARTICLE.match(text, match.end()) is not None


def _chooses(lead: str, tail: str, option: str, options: Sequence[str], question: str) -> bool:
    """Whether `option` between `lead` and `tail` is a choice. The last option is that of which a scale is told
    ("8/9")."""
    scale = options[0].isdigit()
    reason = None if scale or not _JSON_LEAD.fullmatch(lead) else _JSON_REASON.match(tail)
    if reason:
        return not _DOUBT.search(reason[1])
    tail = tail[_closing(tail) :]
    if scale:
        tail = re.sub(rf"^\s*(?:/|out of)\s*{re.escape(options[-1])}(?!\.?\d)", "", tail)
        tail = tail[_closing(tail) :]
    if _NOTHING.fullmatch(lead):
        again = _AGAIN.match(tail)
        if again:
            repeated = chosen_option(again[1], options, question)
            if repeated is not None and repeated[0] == option:
                return True
        because = _PRAISE_BECAUSE.match(tail)
        praised = _PRAISE.match(tail) or (because and not _DOUBT.search(because[1]))
        return bool(_STOPS.match(tail) or (not scale and praised))
    return _LEAD.fullmatch(lead) is not None and _ENDS.match(tail) is not None


def _closing(tail: str) -> int:
    """How far the marks go that close a name ("**(A).**"); a full stop behind them is left."""
    found = _CLOSING.match(tail)
    return found.end() if found else 0


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
    text, said = "".join(token.text for token in reply.tokens), reply.text.strip()
    if not text.strip().startswith(said):
        raise QuestionError(f"the reply's text '{_line(said)}' is not that of its tokens, '{_line(text)}'")
    if said:
        text = text[: text.index(said) + len(said)]  # servers list the token that ends the reply too
    chosen = chosen_option(text, options, question)
    if chosen is None:
        raise QuestionError(f"the reply chooses none of {', '.join(options)}, or names several: '{_line(text)}'")
    ends = accumulate(len(token.text) for token in reply.tokens)
    at = next(i for i, end in enumerate(ends) if chosen[1] < end)
    token = reply.tokens[at]
    if reply.cut and (at == len(reply.tokens) - 1 or _goes_on(text, chosen)):
        raise QuestionError(f"a limit cut the reply off within its choice (finish_reason length): '{_line(text)}'")
    if _option_of(token.text, options) != chosen[0]:
        raise QuestionError(f"the token '{token.text}' names an option and more: it cannot be read")
    if not token.alternatives:
        raise QuestionError("no alternatives beside the token that names an option: top_logprobs are needed")
    return token


def _option_of(token: str, options: Sequence[str]) -> str | None:
    """The option that a token spells: itself with marks and blanks around it, of which tokenizers have their own."""
    core = re.fullmatch(rf"{_MARKS}([A-Za-z0-9]+){_MARKS}", token)
    signed = options[0].isdigit() and re.search(r"[-.]\d", token)
    return core[1] if core and core[1] in options and not signed else None


def _line(text: str) -> str:
    return " ".join(text.split())


def _checked(text: str, logprob: object) -> float:
    if not isinstance(logprob, int | float) or not math.isfinite(logprob):
        raise QuestionError(f"the log-probability of '{text}' is {logprob}, not a finite number")
    if logprob > ROUNDING:
        raise QuestionError(f"the log-probability of '{text}' is {logprob:g}, above 0")
    return min(float(logprob), 0.0)


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
