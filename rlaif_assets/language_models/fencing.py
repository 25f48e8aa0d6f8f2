"""How text that comes from data is written into a question, so that it cannot forge the question's structure.

Wording and order of questions belong to `prompts`; that no control token comes from data is `chat`'s business. This
holds for every judge, also where a server tokenises what it is sent. A plain single line is left as it is.
"""

import re
import unicodedata
from collections.abc import Sequence

FENCE_VERSION = 2  # part of the templates' hashes: judgements depend on these rules
INDENT = "    "

# Invisible or without a width: control characters and line separators but for tab and newline, soft hyphen, fillers,
# bidirectional marks, zero-width characters, variation selectors, tags, halves of surrogate pairs.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Joiners and the two selectors of emoji are at home in emoji and in many scripts, but never after ASCII.
_JOINERS = re.compile("(?:^|(?<=[\x00-\x7f]))[\u200c\u200d\ufe0e\ufe0f]+")
_ESCAPE = re.compile(r"\\(?=u\{)")
_OPTION = re.compile(
    r"\((?=\s*[ABab]\s*\)|\s*[AB]\s*(?:[^\w\s]|$))|[\u249c\u249d\U0001f110\U0001f111]",
    re.MULTILINE,
)
_PREFILL = re.compile(r"\b(?:answer|rating)\s+is\s*:?\s*\(", re.IGNORECASE)
_WORDS = (
    r"s|bos|eos|pad|unk|mask|cls|sep|sop|eop|eoh|eoa|eod|eot|sys|human|user|assistant|system|model|bot|turn|think|tool|"
    r"image|audio|video|unused\d+|seed:\w+|\w*[^\W_]_\w+"
)
_BRACKETED = (
    r"inst|system_prompt|available_tools|tool_\w+|model_settings|args|call_id|cls|sep|pad|unk|bos|eos|mask|gmask|smask|"
    r"think|img|prefix|suffix|middle|unused_token_\d+"
)
_CONTROL = re.compile(
    rf"<(?=\||[^<>|]{{1,60}}\|>|/?(?:{_WORDS})>)|\[(?=\||/?(?:{_BRACKETED})\]|e~\[)|\](?=~)|"
    rf"\u25c1(?=/?\w{{1,60}}\u25b7)",
    re.IGNORECASE,
)
_NOT_TEXT = (_CONTROL, _HIDDEN, _JOINERS)
_LOOKALIKES = str.maketrans("\u0391\u0392\u0410\u0412\u0430\u2581", "ABABa_")  # Greek and Cyrillic letters


def fence(text: str) -> str:
    """`text` on one line or on indented ones, spelling no option, verdict or control token.

    Every line break is followed by INDENT, so that no line of data begins where the question's own lines begin, and
    some characters are written as "\\u{28}", their number in hexadecimal. Nothing is lost: without its indents and with
    its escapes read back it is `text` again, so different texts stay different. The characters that are escaped:

    - what is hidden, as it could split or hide a marker: control characters, line separators, bidirectional marks,
      zero-width characters; joiners and selectors of emoji only after ASCII;
    - the opening parenthesis of "(A)", "(B", "The answer is: (", "The rating is: (";
    - the opening bracket of a control token or turn marker of the known chat templates: "<|", "<turn|>", "</s>",
      "<start_of_turn>", "[INST]", "[UNUSED_TOKEN_146]", "\u25c1think\u25b7" and their like;
    - the backslash of "\\u{", which would read as an escape.

    Case, spacing, width (fullwidth letters, bars and brackets) and look-alike letters do not matter.
    """
    places = _places(text, (_ESCAPE, _OPTION, *_NOT_TEXT))
    places |= {match.end() - 1 for match in _PREFILL.finditer(_folded(text))}
    return _escaped(text, places).replace("\n", f"\n{INDENT}")


def without_control(text: str) -> str:
    """`text` with what could be a control token, or hide one, escaped as in `fence`, and the rest as it is."""
    return _escaped(text, _places(text, _NOT_TEXT))


def _escaped(text: str, places: set[int]) -> str:
    return "".join(rf"\u{{{ord(c):x}}}" if i in places else c for i, c in enumerate(text)) if places else text


def _places(text: str, patterns: Sequence[re.Pattern[str]]) -> set[int]:
    folded = _folded(text)
    return {place for pattern in patterns for match in pattern.finditer(folded) for place in range(*match.span())}


def _folded(text: str) -> str:
    """As the marker patterns know it, character by character."""
    return text if text.isascii() else "".join(map(_folded_character, text))


def _folded_character(character: str) -> str:
    compatible = unicodedata.normalize("NFKC", character)
    return (compatible if len(compatible) == 1 else character).translate(_LOOKALIKES)
