"""Calls to a server that follows the API and misbehaves: what is retried, what fails with which reason, what stops."""

import logging
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from rlaif_assets.feedback.replies import two_logprobs
from rlaif_assets.language_models.endpoint import Endpoint
from rlaif_assets.language_models.errors import EndpointError, EndpointStoppedError, ModelError, QuestionError
from rlaif_assets.records import Message
from rlaif_assets.settings import ComputeSettings
from tests.chat_server import MODEL, Answer, ChatServer, Plan, chat_server, completion

QUESTION: list[Message] = [{"role": "user", "content": "Which?"}]
GOOD = Answer(completion("(A)"))
HTML = "<html><body>Sign in</body></html>"
KEY = "sk-sentinel-5f0c1e77"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def endpoint(server: ChatServer, version: str | None = None, **settings: object) -> Endpoint:
    return Endpoint(server.url, MODEL, ComputeSettings.model_validate({"endpoint_retries": 2} | settings), version)


def ask(asked: Endpoint) -> str:
    return asked.chat(QUESTION, 5, 0.0).text


Serve = Callable[[Plan], ChatServer]


class TestCalls:
    def test_what_is_asked_and_what_comes_back(self, serve: Serve) -> None:
        server = serve(lambda n, body: GOOD)
        asked = endpoint(server)
        reply = asked.chat(QUESTION, 5, 0.7, seed=3, top_logprobs=4)
        assert (reply.text, reply.tokens, reply.tokens_in, reply.tokens_out) == ("(A)", None, 10, 2)
        assert server.requests == [
            {
                "path": "/v1/chat/completions",
                "model": MODEL,
                "messages": QUESTION,
                "max_tokens": 5,
                "temperature": 0.7,
                "seed": 3,
                "logprobs": True,
                "top_logprobs": 4,
            }
        ]
        assert (asked.calls, asked.tokens) == (1, 12)

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            (Answer({"error": {"message": "busy"}}, 429, {"Retry-After": "0.01"}), "HTTP 429: busy"),
            (Answer({"error": {"message": "a\nb"}}, 500), "HTTP 500: a b"),
            (Answer({"detail": "out of order"}, 503), "HTTP 503: out of order"),
            (Answer(completion("(A)"), cut=True), "no connection, or it broke: ReadError"),
            (Answer(HTML, content_type="text/html"), "HTTP 200 with text/html that is not JSON"),
            (Answer(HTML), "HTTP 200 with application/json that is not JSON"),
        ],
        ids=["429", "500", "503", "reset", "html", "html as json"],
    )
    def test_the_client_tries_again_and_then_gives_one_line(self, serve: Serve, bad: Answer, reason: str) -> None:
        recovering = serve(lambda n, body: GOOD if n else bad)
        assert ask(endpoint(recovering)) == "(A)" and len(recovering.requests) == 2
        broken = serve(lambda n, body: bad)
        with pytest.raises(EndpointError) as caught:
            ask(endpoint(broken))
        assert reason in str(caught.value) and "\n" not in str(caught.value)
        assert len(broken.requests) == 3

    def test_retry_after_is_what_the_client_waits(self, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "openai")
        ask(endpoint(serve(lambda n, body: GOOD if n else Answer({}, 429, {"Retry-After": "0.23"}))))
        assert "Retrying request in 0.230000 seconds" in caplog.text

    def test_a_slow_server(self, serve: Serve) -> None:
        server = serve(lambda n, body: Answer(completion("(A)"), until=server.released))
        with pytest.raises(EndpointError, match=r"no answer within 0\.05 s \(compute\.endpoint_timeout\)"):
            ask(endpoint(server, endpoint_timeout=0.05, endpoint_retries=0))

    def test_nobody_listens(self, serve: Serve) -> None:
        with chat_server(lambda n, body: GOOD) as server:
            asked = endpoint(server, endpoint_retries=0)
        with pytest.raises(EndpointError, match="no connection, or it broke: ConnectError"):
            ask(asked)

    @pytest.mark.parametrize("body", [[], "text", {"choices": []}, {"choices": None}, {"choices": [{}]}, {"a": 1}])
    def test_json_that_is_no_completion(self, serve: Serve, body: object) -> None:
        with pytest.raises(EndpointError, match="the reply is no chat completion"):
            ask(endpoint(serve(lambda n, asked: Answer(body if body != "text" else '"text"'))))

    @pytest.mark.parametrize("status", [401, 404])
    def test_what_no_call_can_mend_stops(self, serve: Serve, status: int) -> None:
        server = serve(lambda n, body: Answer({"error": {"message": "no such model"}}, status))
        told = "environment variable MY_KEY" if status == 401 else f"no model '{MODEL}' .* no such model"
        with pytest.raises(EndpointStoppedError, match=told):
            ask(endpoint(server, endpoint_key_variable="MY_KEY"))
        assert len(server.requests) == 1
        assert server.keys == ["Bearer none"]  # MY_KEY is not set


class TestModelNames:
    @pytest.mark.parametrize("name", [MODEL, None, "", f"{MODEL}-2026-08-06", f"{MODEL}@main", f"{MODEL}:latest"])
    def test_the_name_itself_or_with_a_version(self, serve: Serve, name: str | None) -> None:
        assert ask(endpoint(serve(lambda n, body: Answer(completion("(A)", model=name))))) == "(A)"

    @pytest.mark.parametrize("name", ["judge-10", f"{MODEL}-mini", "other", f"x/{MODEL}"])
    def test_another_model_is_told(self, serve: Serve, name: str) -> None:
        with pytest.raises(EndpointError, match=f"'{name}' answered in place of '{MODEL}'"):
            ask(endpoint(serve(lambda n, body: Answer(completion("(A)", model=name)))))

    def test_a_recorded_version_must_answer(self, serve: Serve) -> None:
        server = serve(lambda n, body: Answer(completion("(A)", model=f"{MODEL}-2026-0{n + 1}")))
        asked = endpoint(server, version=f"{MODEL}-2026-01")
        assert ask(asked) == "(A)"
        with pytest.raises(EndpointError, match=r"2026-02' answered in place of .*2026-01"):
            ask(asked)


class TestSecrets:
    def test_the_key_reaches_the_server_and_no_text(self, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        echo = {"error": {"message": f"Bearer {KEY} may not do this"}}
        server = serve(lambda n, body: Answer(echo, [400, 500, 401, 403, 404][n]))
        asked = endpoint(server, endpoint_retries=0)
        told = [repr(asked), str(vars(asked)), asked.fingerprint]
        for _ in range(5):
            with pytest.raises(ModelError) as caught:
                ask(asked)
            assert caught.value.__cause__ is None and caught.value.__suppress_context__
            told.append(str(caught.value))
        assert server.keys == [f"Bearer {KEY}"] * 5
        assert "HTTP 400: Bearer [key] may not do this" in told
        # `vars` shows the key's own attribute, which nothing prints; all else must be free of it.
        told[1] = ""
        assert KEY not in "\n".join([*told, caplog.text])

    def test_a_key_that_is_part_of_the_models_name_or_of_a_letter(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for key in (MODEL, MODEL[:2], "A", "none"):
            monkeypatch.setenv("OPENAI_API_KEY", key)
            server = serve(
                lambda n, body: Answer(completion("(A)", [("(A)", -0.1, {"(A)": -0.1})], model=f"{MODEL}-1"))
            )
            reply = endpoint(server).chat(QUESTION, 5, 0.0, top_logprobs=2)
            assert (reply.text, reply.model) == ("(A)", f"{MODEL}-1")
            assert reply.tokens and reply.tokens[0].alternatives == (("(A)", -0.1),)

    def test_a_key_that_the_server_takes_for_the_models_version_is_not_recorded(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "0123456789abcdef")
        asked = endpoint(serve(lambda n, body: Answer(completion("A", model=f"{MODEL}-0123456789abcdef"))))
        with pytest.raises(EndpointError, match=rf"'{MODEL}-\[key\]' answered in place of"):
            ask(asked)

    @pytest.mark.parametrize("key", ["sk-back\\slash-1", "sk-'quotes\"-both"])
    def test_a_key_with_odd_characters_is_found_in_reasons(
        self, key: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
        asked = endpoint(serve(lambda n, body: Answer(completion("A", [(key, -0.1, {key: -0.1})]))))

        def read(item: int) -> object:
            return two_logprobs(asked.chat(QUESTION, 5, 0.0, top_logprobs=2), ("A", "B"))

        ((_, found),) = asked.run(read, [0])
        assert isinstance(found, EndpointError) and "[key]" in str(found) and key not in str(found)

    def test_a_key_that_is_cut_in_a_long_reason_is_not_there_in_part(self, serve: Serve) -> None:
        asked = endpoint(serve(lambda n, body: GOOD))

        def fail(item: int) -> str:
            raise EndpointError("x" * (195 - item) + KEY)

        for _, found in asked.run(fail, range(8)):
            assert KEY[:4] not in str(found)

    def test_a_key_that_no_header_can_carry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-two\nlines")
        with pytest.raises(ModelError, match="OPENAI_API_KEY holds blanks") as caught:
            Endpoint("http://127.0.0.1:1/v1", MODEL, ComputeSettings())
        assert "sk-two" not in str(caught.value)

    @pytest.mark.parametrize("url", ["http://me:hush@host/v1", "http://host/v1?key=hush", "http://host/v1#hush"])
    def test_a_url_that_may_hold_a_secret_is_not_repeated(self, url: str) -> None:
        with pytest.raises(ModelError, match="no user, password or query") as caught:
            Endpoint(url, MODEL, ComputeSettings())
        assert "hush" not in str(caught.value)

    def test_the_fingerprint_is_of_url_name_and_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def made(url: str = "http://h/v1", model: str = MODEL, version: str | None = None) -> str:
            return Endpoint(url, model, ComputeSettings(), version).fingerprint

        first = made()
        assert (
            first == made("http://h/v1/") and len({first, made("http://i/v1"), made(model="b"), made(version="c")}) == 4
        )
        monkeypatch.setenv("OPENAI_API_KEY", "another")
        assert made() == first


class TestMany:
    def test_so_many_at_once_and_no_more(self, serve: Serve) -> None:
        together = threading.Barrier(3, timeout=60)

        def plan(n: int, body: object) -> Answer:
            together.wait()
            return GOOD

        server = serve(plan)
        asked = endpoint(server, endpoint_concurrency=3)
        found = dict(asked.run(lambda item: (item, ask(asked)), "abcdefghi"))
        assert found == {i: (letter, "(A)") for i, letter in enumerate("abcdefghi")}
        assert server.most == 3

    def test_results_come_before_the_slow_one_is_there(self, serve: Serve) -> None:
        late = threading.Event()
        server = serve(lambda n, body: Answer(completion("(A)"), until=late if body["max_tokens"] == 1 else None))
        asked = endpoint(server, endpoint_concurrency=2)
        results = asked.run(lambda tokens: asked.chat(QUESTION, tokens, 0.0).text, [1, 2, 3, 4])
        assert [next(results)[0] for _ in range(3)] == [1, 2, 3]
        late.set()
        assert [number for number, _ in results] == [0]

    def test_failures_in_a_row_stop_with_what_there_is(self, serve: Serve) -> None:
        bad = Answer({"error": {"message": "down"}}, 403)
        server = serve(lambda n, body: GOOD if n in (0, 3) else bad)
        asked = endpoint(server, endpoint_concurrency=1, endpoint_failures=3)
        found = {}
        with pytest.raises(EndpointStoppedError, match=r"^7 of 20 questions .*3 failures in a row .*HTTP 403: down"):
            for number, result in asked.run(lambda item: ask(asked), range(20)):
                found[number] = result
        assert [isinstance(found[i], EndpointError) for i in range(7)] == [False, True, True, False, True, True, True]

    def test_failures_in_a_row_count_over_many_small_runs(self, serve: Serve) -> None:
        bad, mended = Answer({"error": {"message": "down"}}, 403), threading.Event()
        server = serve(lambda n, body: GOOD if mended.is_set() else bad)
        asked = endpoint(server, endpoint_concurrency=4, endpoint_failures=3)
        for _ in range(3):
            assert [number for number, _ in asked.run(lambda item: ask(asked), [0])] == [0]
        for expected in (4, 5):  # one more question finds out whether it is still down
            with pytest.raises(EndpointStoppedError, match=rf"{expected} failures in a row"):
                list(asked.run(lambda item: ask(asked), range(9)))
            assert len(server.requests) == expected
        mended.set()
        assert len(list(asked.run(lambda item: ask(asked), range(9)))) == 9

    def test_questions_that_a_working_endpoint_refuses_do_not_stop_it(self, serve: Serve) -> None:
        long = Answer({"error": {"message": "context length exceeded"}}, 400)
        asked = endpoint(serve(lambda n, body: long if n else GOOD), endpoint_concurrency=1, endpoint_failures=3)
        found = dict(asked.run(lambda item: ask(asked), range(20)))
        assert isinstance(found[0], str) and sum(isinstance(one, QuestionError) for one in found.values()) == 19
        again = endpoint(serve(lambda n, body: long), endpoint_concurrency=1, endpoint_failures=3)
        again.proven = True  # it answered others in an earlier run
        assert len(list(again.run(lambda item: ask(again), range(20)))) == 20
        with pytest.raises(EndpointStoppedError, match=r"30 failures in a row .*limit: compute.endpoint_failures"):
            list(again.run(lambda item: ask(again), range(200)))  # ten times as many: it answers nothing any more
        never = endpoint(serve(lambda n, body: long), endpoint_concurrency=1, endpoint_failures=3)
        with pytest.raises(EndpointStoppedError, match=r"3 failures in a row"):
            list(never.run(lambda item: ask(never), range(20)))

    def test_the_budget_of_calls_is_kept_exactly(self, serve: Serve) -> None:
        server = serve(lambda n, body: GOOD)
        asked = endpoint(server, endpoint_concurrency=4, endpoint_max_calls=7)
        found = []
        with pytest.raises(EndpointStoppedError, match=r"^3 of 9 questions .*raise compute\.endpoint_max_calls"):
            for number, _ in asked.run(lambda item: [ask(asked), ask(asked)], range(9), calls=2):
                found.append(number)
        assert sorted(found) == [0, 1, 2] and len(server.requests) == 6
        with pytest.raises(EndpointStoppedError, match=r"^0 of 1 "):  # the budget is the endpoint's, not one call's
            list(asked.run(lambda item: ask(asked), "ab"[:1], calls=2))

    def test_the_budget_of_tokens_lets_what_runs_end(self, serve: Serve) -> None:
        server = serve(lambda n, body: GOOD)  # 12 tokens
        asked = endpoint(server, endpoint_concurrency=1, endpoint_max_tokens=30)
        with pytest.raises(EndpointStoppedError, match=r"^3 of 9 .*30 tokens is spent \(36\)"):
            list(asked.run(lambda item: ask(asked), range(9)))
        silent = endpoint(serve(lambda n, body: Answer(completion("(A)", usage=None))), endpoint_max_tokens=30)
        with pytest.raises(EndpointStoppedError, match=r"does not say how many tokens"):
            list(silent.run(lambda item: ask(silent), range(9)))

    def test_a_budget_that_just_suffices_stops_nothing(self, serve: Serve) -> None:
        asked = endpoint(serve(lambda n, body: GOOD), endpoint_max_calls=4)
        assert len(list(asked.run(lambda item: ask(asked), range(4)))) == 4

    def test_a_mistake_in_the_program_is_no_failure_of_the_endpoint(self, serve: Serve) -> None:
        asked = endpoint(serve(lambda n, body: GOOD))
        with pytest.raises(ZeroDivisionError):
            list(asked.run(lambda item: 1 / item, [0]))


def test_openai_is_imported_with_the_first_endpoint() -> None:
    code = "import sys, rlaif_assets.language_models.endpoint; print({'openai', 'httpx2', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
