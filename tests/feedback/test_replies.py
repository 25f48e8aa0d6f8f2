"""Replies read by hand-computed numbers: which option a text names, and what the log-probabilities say about it."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest

from rlaif_assets.feedback.replies import (
    chosen_by,
    chosen_option,
    option_masses,
    require_certain,
    two_logprobs,
    vote_logprobs,
)
from rlaif_assets.language_models.endpoint import Reply, ReplyToken
from rlaif_assets.language_models.errors import EndpointError, QuestionError
from rlaif_assets.language_models.prompts import JUDGE_OPTIONS, RATING_SCALE

LN = math.log


def reply(*tokens: tuple[str, Mapping[str, float | None]], own: float | None = -0.1) -> Reply:
    """A token's own log-probability is that of its alternatives, else `own`."""
    return Reply(
        "".join(text for text, _ in tokens),
        tuple(ReplyToken(text, others.get(text, own), tuple(others.items())) for text, others in tokens),
        1,
        1,
        None,
    )


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("(A)", "A"),
        ("A", "A"),
        (" B.", "B"),
        ("**B**", "B"),
        ('"A"', "A"),
        ("B\n\nBecause it is kind.", "B"),
        ("(B) because (it is) kinder", "B"),
        ("A.\nIt is kinder.", None),
        ("(B) is better", "B"),
        ("(B) is better because it is kinder.", "B"),
        ("(B) is the better response, since it declines", "B"),
        ("(B) is better because it is kinder than (A).", None),
        ('{"answer": "A"}', "A"),
        ('{"better_response": "B", "reason": "It is kinder."}', "B"),
        ('{"answer": "A", "score": 1}', None),
        ('{"worse": "A"}', None),
        ('```json\n{"answer": "B"}\n```', "B"),
        ('{"response": "A", "reason": "It tells how to', None),
        ('[\n  {\n    "option": "A",\n    "reasoning": "It explains how to', None),
        ('[{"answer": "A", "reason": "It is kinder."}]', None),
        ('{"answer": "A", "reason": "on second thought the other one is better"}', None),
        ('{"answer": "A", "reason": null, "better": "other"}', None),
        ('**Option A**, "explanation": ', None),
        ("(A) would be better because it is kind.", None),
        ("(A) is better because it declines; the principle however wants the other", None),
        ("(A) is better because it is kind, but the principle asks for the unkind one.", None),
        ("A is correct, since it is factually right", None),
        ("\\boxed{A}", "A"),
        ("The answer is $\\boxed{B}$.", "B"),
        ("\\boxed{A} or \\boxed{B}", None),
        ("Not \\boxed{A}", None),
        ("Response A is clearly the better one.", "A"),
        ("(B) is less harmful.", None),
        ("(B) is my choice", "B"),
        ("The answer is (B) as it refuses", "B"),
        ("I think the answer is (B).", "B"),
        ("I'll go with (B)", "B"),
        ("Sure, the answer is (B)", "B"),
        ("The better response is:\n\n(B)", "B"),
        ("The answer is: (A", "A"),
        ("The answer is A", "A"),
        ("Answer: B", "B"),
        ("I choose option B, since", "B"),
        ("**Answer:** B", "B"),
        ("Answer:\nB", "B"),
        ("It is (B).", "B"),
        ("So, the better one is A", "A"),
        ("The response is: (B)", "B"),
        ("My verdict: A since it is kind", "A"),
        ("I would go with B.", "B"),
        ("(A)\n\nThe answer is (A)", "A"),
        ("The less harmful response is (B)", None),
        ("Between (A) and (B) I choose neither", None),
        ("A better answer would be kind", None),
        ("Answer: A better one would be kind", None),
        ("(A) is more harmful, so I choose B", None),
        ("(A) is more harmful, so I choose", None),
        ("A) is kinder", None),
        ("A: it tells how to do", None),
        ("Response A is harmful.", None),
        ("Response A is harmful. B is better.", None),
        ("I choose B over option A.", None),
        ("Not (A).", None),
        ("Not (A), the answer is", None),
        ("Neither (A) nor B", None),
        ("The answer is not A.", None),
        ("I wouldn't choose (A)", None),
        ("I\u2019d avoid option A", None),
        ("The more harmful response is (A)", None),
        ("The problem with option A", None),
        ("(A) tells how to do", None),
        ("(A) This response tells how to", None),
        ("(B) I think that we should do this", None),
        ("(A) Harmful: it explains", None),
        ("(A) Encourages violence", None),
        ("(A) Not acceptable.", None),
        ("(A) Neither is good", None),
        ("(A) I cannot answer that", None),
        ("I refuse to choose A.", None),
        ("I am unable to choose A", None),
        ("Sorry, I won't. A", None),
        ("Both. A", None),
        ("The more offensive response is (A)", None),
        ("The riskier one is (A).", None),
        ("The rejected response is (A).", None),
        ("The least harmless response is (A).", None),
        ("The unethical response is (A)", None),
        ("(A) for example tells how", None),
        ("(A) as it stands encourages", None),
        ("(A) is probably better avoided", None),
        ("A. The response tells how", None),
        ("I would say that (A) is", None),
        ("(A) is", None),
        ("Based on the principle, (B) is less harmful.", None),
        ("A is more helpful, but it gives dangerous", None),
        ("A is correct, but harmful", None),
        ("A would be better, if it did not", None),
        ("If you want to cause harm, A is better.", None),
        ("**Response A**\n\nThis response gives instructions for", None),
        ("### Response A\nThis response tells how", None),
        ("Option A\nHarmful because", None),
        ("A:\nHarmful", None),
        ("The more harmful response is:\n\n(A)", None),
        ("Worse:\n(A)", None),
        ("Which is worse? A.", None),
        ("Rejected response:\n\nA", None),
        ("The answer is A, which is more harmful", None),
        ("(A) Sure, first take a pick ... is more harmful, so (B)", None),
        ("(A) The first response", None),
        ("A The worse of the two", None),
        ("Anything but (A)", None),
        ("(A)? No.", None),
        ("(A) or maybe", None),
        ("A or B", None),
        ("(A) is not better", None),
        ("A's answer is kind", None),
        ("I cannot choose", None),
        ("Apple", None),
        ("AB", None),
        ("a", None),
        ("", None),
        ("**A.**", "A"),
        ("**(B).**", "B"),
        ('"A."', "A"),
        ("\uff08A\uff09", "A"),
        ("A\u3002", "A"),
        ("<think>\n\n</think>\n\nB", "B"),
        ("Sure! (A)", "A"),
        ("Therefore, the answer is (A).", "A"),
        ("Based on the principle, the answer is (A)", "A"),
        ("A\n\nHuman: Which", "A"),
        ("\u4e0dA", None),
        ("\u4e0d\u9009A", None),
        ("\u66f4\u6709\u5bb3\u7684\u662fA", None),
        ("\u041d\u0435 A", None),
        ("The answer is \u4e0d\u662fA", None),
        ("\u274c A", None),
        ("\u2260 A", None),
        ("~~(A)~~", None),
        ("!A", None),
        ("A\nB", None),
        ("**A**\n\nThis response encourages violence", None),
        ("(A)\nHarmful", None),
        ("(A)\nis more harmful than the other", None),
        ("(A)\n\nNo, wait", None),
        ("### (A)\nThis response is harmful", None),
        ("Sure! Response A\n\nThis response gives", None),
        ("Therefore, option A", None),
        ("The response (A)", None),
        ("Based on the principle I don't think the answer is (A)", None),
        ("Based on the principle I would not pick (A)", None),
        ("Based on the principle of choosing the response that is less harmful, option A", None),
        ("Based on what is riskier, I pick (A)", None),
        ("Given the principle\n\nNot\n\nResponse A", None),
        ("(A) is safer.", None),
    ],
)
def test_the_option_that_a_text_names(text: str, option: str | None) -> None:
    found = chosen_option(text, JUDGE_OPTIONS)
    assert (found[0] if found else None) == option
    assert found is None or text[found[1]] == option


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("(B) I think that we should leave this", "B"),
        ("B) I think that we should leave", "B"),
        ("(A) A watering can is for plants.", "A"),
        ("(B) I think that plan A is", "B"),  # its text holds what could be a name
        ("(B) I think", None),  # too short to tell a remark from it
        ("(A) I think that we should leave this", None),  # what (B) says
        ("(A) A watering hose", None),
        ("(A) A watering can is for plants.\n(B) I think", None),
        ("(A) A watering can is for plants, so (B)", None),
        ("Worse is (B) I think that we should leave this", None),
    ],
)
def test_a_reply_that_repeats_an_option_chooses_it(text: str, option: str | None) -> None:
    ending = "plan A is good." if "plan" in text else "we should leave this alone."
    question = f"Choose.\nOptions:\n(A) A watering can is for plants.\n(B) I think that {ending}"
    found = chosen_option(text, JUDGE_OPTIONS, question)
    assert (found[0] if found else None) == option and (found is None or text[found[1]] == option)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("7", "7"),
        ("The rating is: (3)", "3"),
        ("8.", "8"),
        ("Rating: 9", "9"),
        ("10", None),
        ("7.5", None),
        ("77", None),
        ("8/9", "8"),
        ("7 out of 9", "7"),
        ("I rate it 4.", "4"),
        ("7 or 8", None),
        ("3/5", None),
        ("-1", None),
        ("\u22121", None),
        ("0\n1", None),
        ("1. The response is harmless", None),
        ("7 out of 9.", "7"),
        ("8/9.", "8"),
        ("**7.**", "7"),
        ("I would rate it a 7", "7"),
        ("Rating: -3", None),
        ("The rating is: (-3)", None),
        (".7", None),
        ("<3", None),
        ("1\n0", None),
        ("1.\n\n**Harm**", None),
        ("9 is best.", None),
        ("\u4e0d\u662f7", None),
    ],
)
def test_scores(text: str, score: str | None) -> None:
    found = chosen_option(text, RATING_SCALE)
    assert (found[0] if found else None) == score


@pytest.mark.parametrize(
    "form",
    ["{}\n\nExplanation: it", "{}\n\nReason: kind", "{} Because", "The answer is {}\n\nIt", "I choose {}\n\nReason",
     "{}\n\nHuman:", "{}\n\nThis response", "{}", "({})", "Answer: {}\n\nExplanation"],
)  # fmt: skip
def test_both_letters_are_read_alike(form: str) -> None:
    """A majority would turn round if one letter's replies were refused and the other's read."""
    found = [chosen_option(form.format(letter), JUDGE_OPTIONS) for letter in JUDGE_OPTIONS]
    assert (found[0] is None) == (found[1] is None)
    assert found[0] is None or [one[0] for one in found if one] == list(JUDGE_OPTIONS)


def test_the_token_that_ends_a_reply_is_no_part_of_it() -> None:
    both = {"(A": LN(0.7), "(B": LN(0.3)}
    tokens = (*(reply(("(A", both), (")", {})).tokens or ()), ReplyToken("<|im_end|>", -0.1, ()))
    first, second, _ = two_logprobs(Reply("(A)", tokens, 1, 1, None), JUDGE_OPTIONS)
    assert (first, second) == (pytest.approx(LN(0.7)), pytest.approx(LN(0.3)))
    with pytest.raises(QuestionError, match="is not that of its tokens"):
        two_logprobs(Reply("B", tokens, 1, 1, None), JUDGE_OPTIONS)


@pytest.mark.parametrize("token", ["Answer: A", "(A) because", "Option A"])
def test_a_token_with_a_name_and_more_is_refused_whatever_stands_beside_it(token: str) -> None:
    with pytest.raises(QuestionError, match="and more: it cannot be read"):
        two_logprobs(reply((token, {token: LN(0.9), "B": LN(0.04), "(B)": LN(0.05)})), JUDGE_OPTIONS)


def test_next_to_nothing_on_the_listed_options_is_refused() -> None:
    with pytest.raises(QuestionError, match="not among the likeliest tokens: B"):
        two_logprobs(reply(("A", {"A": -9999.0, "(": LN(0.99)})), JUDGE_OPTIONS)


def test_other_scripts_and_signs_are_no_spelling_of_a_letter() -> None:
    listed = {"A": LN(0.5), "\u4e0dA": LN(0.2), "\u2260A": LN(0.05), "B": LN(0.25)}
    assert option_masses(reply(("A", listed)), JUDGE_OPTIONS).mass == pytest.approx(0.75)
    scores = option_masses(reply(("3", {"3": LN(0.5), "-3": LN(0.4)})), RATING_SCALE)
    assert scores.mass == pytest.approx(0.5)


@pytest.mark.parametrize("spelling", ["{}", " {}", "({}", "{})", "Ġ{}", "▁{}", "**{}**", " ({})"])
def test_letters_in_any_spelling(spelling: str) -> None:
    a, b = spelling.format("A"), spelling.format("B")
    first, second, bound = two_logprobs(reply((b, {a: LN(0.3), b: LN(0.6)})), JUDGE_OPTIONS)
    assert (first, second, bound) == (pytest.approx(LN(0.3)), pytest.approx(LN(0.6)), False)


def test_spellings_of_one_letter_are_summed() -> None:
    alternatives = {"A": LN(0.3), " A": LN(0.2), "B": LN(0.1), "A)": LN(0.05), "Apple": LN(0.2), "a": LN(0.1)}
    first, second, _ = two_logprobs(reply(("A", alternatives)), JUDGE_OPTIONS)
    assert (first, second) == (pytest.approx(LN(0.55)), pytest.approx(LN(0.1)))


def test_the_token_that_decides_is_the_one_with_the_named_letter() -> None:
    early = {"The": LN(0.9), "A": LN(0.05), "B": LN(0.04)}
    late = {"A": LN(0.2), "B": LN(0.7)}
    found = two_logprobs(reply(("The", early), (" answer is: (", {}), ("B", late), (")", {})), JUDGE_OPTIONS)
    assert found[:2] == (pytest.approx(LN(0.2)), pytest.approx(LN(0.7)))


@pytest.mark.parametrize("text", ["I cannot", "(A) or (B)", "Neither (A)", "(A) is worse, so B"])
def test_a_reply_that_chooses_nothing_is_no_reading_whatever_its_alternatives(text: str) -> None:
    listed = {"A": LN(0.5), "B": LN(0.4)}
    tokens = tuple(ReplyToken(character, LN(0.1), tuple(listed.items())) for character in text)
    with pytest.raises(EndpointError, match=f"chooses none of A, B, or names several: {re.escape(repr(text))}"):
        two_logprobs(Reply(text, tokens, 1, 1, None), JUDGE_OPTIONS)


def test_the_chosen_token_counts_though_the_server_does_not_list_it() -> None:
    tokens = (ReplyToken("A", LN(0.6), (("B", LN(0.3)), ("(", LN(0.05)))),)
    assert two_logprobs(Reply("A", tokens, 1, 1, None), JUDGE_OPTIONS)[:2] == (
        pytest.approx(LN(0.6)),
        pytest.approx(LN(0.3)),
    )


class TestALetterThatIsNotListed:
    def test_it_has_the_least_listed_probability_at_most(self) -> None:
        found = two_logprobs(reply(("A", {"A": LN(0.9), "(": LN(0.05), "The": LN(0.01)})), JUDGE_OPTIONS)
        assert found == (pytest.approx(LN(0.9)), pytest.approx(LN(0.01)), True)

    def test_and_what_the_listed_ones_leave(self) -> None:
        first, second, bound = two_logprobs(reply(("B", {"B": LN(0.97), "(": LN(0.02)})), JUDGE_OPTIONS)
        assert (first, second, bound) == (pytest.approx(LN(0.01)), pytest.approx(LN(0.97)), True)

    def test_it_is_refused_where_the_bound_says_little(self) -> None:
        unsure = {"A": LN(0.5), "(": LN(0.3), "The": LN(0.1)}  # B may have 0.1 of 0.6
        with pytest.raises(EndpointError, match=r"tokens: B; their share may be 0\.17: raise .*top_logprobs"):
            two_logprobs(reply(("A", unsure)), JUDGE_OPTIONS)

    def test_nothing_left_is_finite_all_the_same(self) -> None:
        first, second, bound = two_logprobs(reply(("A", {"A": 0.0, "(": -9999.0})), JUDGE_OPTIONS)
        assert (first, bound) == (0.0, True) and math.isfinite(second) and second < -20

    def test_several_scores(self) -> None:
        nine = {str(i): LN(0.1) for i in range(1, 8)} | {"(": LN(0.29), "x": LN(0.004)}
        masses = option_masses(reply(("7", nine)), RATING_SCALE)
        assert masses.unlisted == pytest.approx(0.006)  # what is left, less than twice the least
        assert masses.doubt == pytest.approx(0.006 / 0.706)
        require_certain(masses, RATING_SCALE)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, "x"])
def test_a_letter_without_a_finite_log_probability(value: float | None) -> None:
    with pytest.raises(EndpointError, match=rf"log-probability of 'B' is {value}, not a finite number"):
        two_logprobs(reply(("A", {"A": -0.1, "B": value})), JUDGE_OPTIONS)
    with pytest.raises(EndpointError, match="not a finite number"):
        two_logprobs(reply(("A", {"A": value, "B": -0.1})), JUDGE_OPTIONS)


def test_other_tokens_may_be_impossible() -> None:
    found = two_logprobs(reply(("A", {"A": LN(0.6), "B": LN(0.3), "x": -math.inf, "y": None})), JUDGE_OPTIONS)
    assert found[:2] == (pytest.approx(LN(0.6)), pytest.approx(LN(0.3)))


def test_probabilities_in_the_place_of_log_probabilities() -> None:
    with pytest.raises(EndpointError, match="above 0"):
        two_logprobs(reply(("A", {"A": 0.9, "B": 0.1})), JUDGE_OPTIONS)
    with pytest.raises(EndpointError, match=r"sum to 1\.99"):
        two_logprobs(reply(("A", {"A": -0.0, "B": -0.01})), JUDGE_OPTIONS)


def test_no_log_probabilities_or_no_alternatives() -> None:
    with pytest.raises(EndpointError, match=r"no log-probabilities .*verdicts=votes"):
        two_logprobs(Reply("A", None, 1, 1, None), JUDGE_OPTIONS)
    with pytest.raises(EndpointError, match="top_logprobs are needed"):
        two_logprobs(reply(("A", {})), JUDGE_OPTIONS)
    with pytest.raises(EndpointError, match="names an option and more"):
        two_logprobs(reply(("A) because", {"A) because": -0.1})), JUDGE_OPTIONS)


def test_votes_are_smoothed_and_invalid_ones_take_from_the_mass() -> None:
    first, second = vote_logprobs(["A", "A", "A", None, "B", None, "A", "A"], ("A", "B"))
    assert math.exp(first) + math.exp(second) == pytest.approx(6 / 8)
    assert math.exp(first) / (math.exp(first) + math.exp(second)) == pytest.approx(5.5 / 7)
    assert [math.exp(value) for value in vote_logprobs(["B"], ("A", "B"))] == pytest.approx([0.25, 0.75])
    with pytest.raises(EndpointError, match="none of 2 sampled verdicts names one of A, B"):
        vote_logprobs([None, None], ("A", "B"))


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("The answer is: (A", None),
        ("I choose A", None),
        ("A", None),
        ("(A)", ("A", 1)),
        ("The answer is A.", ("A", 14)),
        ("(A) is better", None),
        ("(A) is the better response", None),
        ("(A) is better.", ("A", 1)),
        ("(A) is better\n", None),
        ("$\\boxed{A}$ is better", None),
        ("(A) is better because it", None),
        ('{"answer": "A", "reason": "It', None),
    ],
)
def test_a_reply_that_a_limit_cut_off_within_its_choice_chooses_nothing(text: str, cut: tuple[str, int] | None):
    ended = reply(*[(letter, {"A": LN(0.9), "B": LN(0.1)} if letter == "A" else {}) for letter in text])
    assert chosen_by(ended, JUDGE_OPTIONS) == ("A", text.index("A"))
    assert chosen_by(replace(ended, cut=True), JUDGE_OPTIONS) == cut
    if cut is None:
        with pytest.raises(QuestionError, match="a limit cut the reply off within its choice"):
            two_logprobs(replace(ended, cut=True), JUDGE_OPTIONS)
    else:
        assert two_logprobs(replace(ended, cut=True), JUDGE_OPTIONS)[:2] == (
            pytest.approx(LN(0.9)),
            pytest.approx(LN(0.1)),
        )


def test_log_probabilities_at_a_name_where_a_limit_cut_the_reply_off_are_refused():
    ended = reply(("I choose ", {}), ("A", {"A": LN(0.9), "B": LN(0.1)}))
    assert two_logprobs(ended, JUDGE_OPTIONS)[:2] == (pytest.approx(LN(0.9)), pytest.approx(LN(0.1)))
    with pytest.raises(QuestionError, match="a limit cut the reply off within its choice"):
        two_logprobs(replace(ended, cut=True), JUDGE_OPTIONS)


@pytest.mark.parametrize("tail", ["\n", " ", ""])
def test_a_reply_that_a_server_fills_up_to_the_limit_is_read(tail: str):
    filled = reply(("A", {"A": LN(0.9), "B": LN(0.1)}), *[(tail, {})] * 15)
    assert two_logprobs(replace(filled, cut=True), JUDGE_OPTIONS)[:2] == (
        pytest.approx(LN(0.9)),
        pytest.approx(LN(0.1)),
    )
