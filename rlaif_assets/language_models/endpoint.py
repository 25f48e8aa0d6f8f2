"""An OpenAI-compatible chat endpoint: one call, and many at once under limits. What is asked belongs to `feedback`.

Retries, their delays and Retry-After are the `openai` client's, which is imported when the first endpoint is made. The
key is read from the environment, held by the client alone, and taken out of every reason; whoever keeps a reply's text
asks for it `without_key`.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rlaif_assets.language_models.errors import EndpointError, EndpointStoppedError, ModelError, QuestionError
from rlaif_assets.records import Message
from rlaif_assets.settings import ComputeSettings
from rlaif_assets.store.fingerprint import canonical_json, sha256_text

NO_KEY = "none"  # servers on one's own machine take any
LEAST_KEY = 8  # characters
REFUSED = 10  # times endpoint_failures
REASON_CHARACTERS = 200
# What servers append to the name that they were asked for: a date, a branch, a commit.
VERSION = r"[-@:](\d[\d.\-]*|latest|main|[0-9a-f]{7,40})"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ReplyToken:
    """One token of a reply and the likeliest tokens in its place, as the server gave them: None, NaN and all."""

    text: str
    logprob: float | None
    alternatives: tuple[tuple[str, float | None], ...]


@dataclass(frozen=True)
class Reply:
    """`tokens` is None where the server gave no log-probabilities. Token counts are the server's, 0 if it gave none.
    `cut`: a limit ended the reply (finish_reason "length")."""

    text: str
    tokens: tuple[ReplyToken, ...] | None
    tokens_in: int
    tokens_out: int
    model: str | None
    cut: bool = False


class Endpoint:
    """A model behind a base URL such as http://127.0.0.1:8000/v1, asked under the limits of `compute`.

    `version` is the name that it must answer as; without one, `model` or that with a version appended. `calls` and
    `tokens` count what was answered since the endpoint was made, whoever asked; the budgets are for that time.
    `proven`: it has answered a question well, now or before, so a question that it does not is that question's fault.
    """

    def __init__(self, url: str, model: str, compute: ComputeSettings, version: str | None = None) -> None:
        from openai import DefaultHttpxClient, OpenAI

        self.url, self.model, self.version, self.compute = checked_url(url), model, version, compute
        self.calls = self.tokens = self._booked = self._in_a_row = self._refused = 0
        self.proven = False
        self._lock = threading.Lock()
        self._key = _key(compute.endpoint_key_variable)
        self._client = OpenAI(
            base_url=self.url,
            api_key=self._key or NO_KEY,
            timeout=compute.endpoint_timeout,
            max_retries=compute.endpoint_retries,
            http_client=DefaultHttpxClient(event_hooks={"response": [_require_json]}),
        )

    @property
    def fingerprint(self) -> str:
        """Of the URL, the model's name and the version it answers as: all that is known of somebody else's weights."""
        return sha256_text(canonical_json(["endpoint", self.url, self.model, self.version]))

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        temperature: float,
        seed: int | None = None,
        top_logprobs: int = 0,
    ) -> Reply:
        """The first choice of one completion; with `top_logprobs`, log-probabilities are asked for.

        Raises EndpointError where there is none after the client's retries, or where another model answered;
        EndpointStoppedError where no call can succeed (key refused, no such model or path).
        """
        import openai

        options: dict[str, Any] = {"messages": [dict(message) for message in messages]}
        if seed is not None:
            options["seed"] = seed
        if top_logprobs:
            options |= {"logprobs": True, "top_logprobs": top_logprobs}
        try:
            completion: Any = self._client.chat.completions.create(
                model=self.model,
                max_tokens=max_tokens,
                temperature=temperature,
                **options,
            )
            reply = _reply(completion)
        except openai.AuthenticationError:
            raise EndpointStoppedError(
                f"{self.url} refuses the key (HTTP 401): put a valid one into the environment variable "
                f"{self.compute.endpoint_key_variable}, which compute.endpoint_key_variable names"
            ) from None
        except openai.NotFoundError as error:
            raise EndpointStoppedError(
                f"{self.url} has no model {self.model!r} or no chat completions: {self._told(error)}"
            ) from None
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise QuestionError(self._told(error)) from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            kind = QuestionError if getattr(error, "status_code", None) == 413 else EndpointError
            raise kind(self._told(error)) from None
        with self._lock:
            self.calls += 1
            self.tokens += reply.tokens_in + reply.tokens_out
        self._check(reply)
        return reply

    def run(
        self, work: Callable[[Item], Result], items: Sequence[Item], calls: int = 1
    ) -> Iterator[tuple[int, Result | EndpointError]]:
        """`work` on every item in threads, at most `endpoint_concurrency` at once: item numbers and results, as they
        come; an EndpointError that `work` raises is its result.

        `work` makes at most so many `calls` per item. Before an item begins, its calls must fit the budget of calls and
        the tokens must not be spent; those that have begun end, so tokens may be passed by what runs at once. Then, and
        after `endpoint_failures` results in a row that are errors, also those of earlier runs, EndpointStoppedError is
        raised, last. A run after so many begins with one item, and ends there where that fails too. Of an endpoint that
        is `proven` QuestionErrors count apart, and REFUSED times as many are too many.
        """
        waiting: dict[Future[Result], int] = {}
        numbers, stopped, done, was_failing = iter(range(len(items))), "", 0, self._failing
        pool = ThreadPoolExecutor(self.compute.endpoint_concurrency)
        try:
            while True:
                while not stopped and len(waiting) < (1 if self._failing else self.compute.endpoint_concurrency):
                    number = next(numbers, None)
                    if number is None:
                        break
                    stopped = self._book(calls)
                    if not stopped:
                        waiting[pool.submit(work, items[number])] = number
                if not waiting:
                    break
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in sorted(finished, key=waiting.__getitem__):
                    number = waiting.pop(future)
                    try:
                        result = future.result()
                    except EndpointStoppedError as error:
                        stopped = stopped or str(error)
                        continue
                    except EndpointError as error:
                        result = type(error)(self._line(str(error)))
                    done += 1
                    self._count(result)
                    if self._failing and not stopped:
                        stopped = (
                            f"{max(self._in_a_row, self._refused)} failures in a row at {self.url} (limit: "
                            f"compute.endpoint_failures), the last: {result}"
                        )
                    yield number, result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if stopped and (done < len(items) or was_failing):
            raise EndpointStoppedError(f"{done} of {len(items)} questions have an outcome: {stopped}")

    def _count(self, result: object) -> None:
        if not isinstance(result, EndpointError):
            self.proven, self._in_a_row, self._refused = True, 0, 0
        elif isinstance(result, QuestionError) and self.proven:
            self._refused += 1
        else:
            self._in_a_row += 1

    @property
    def _failing(self) -> bool:
        most = self.compute.endpoint_failures
        return self._in_a_row >= most or self._refused >= REFUSED * most

    def _book(self, calls: int) -> str:
        """Takes `calls` from the budget; why not, where it does not hold them."""
        most, tokens = self.compute.endpoint_max_calls, self.compute.endpoint_max_tokens
        if tokens is not None and self.tokens >= tokens:
            return f"the budget of {tokens} tokens is spent ({self.tokens}): raise compute.endpoint_max_tokens"
        if most is not None and self._booked + calls > most:
            return (
                f"{self._booked} of the budget of {most} calls are spent, and a question takes {calls}: "
                "raise compute.endpoint_max_calls"
            )
        self._booked += calls
        return ""

    def _check(self, reply: Reply) -> None:
        if self.compute.endpoint_max_tokens is not None and reply.tokens_in + reply.tokens_out == 0:
            raise EndpointStoppedError(
                f"{self.url} does not say how many tokens it used, so a budget of tokens cannot be kept: set "
                "compute.endpoint_max_calls instead of compute.endpoint_max_tokens"
            )
        wanted = self.version or self.model
        if reply.model and reply.model != wanted:
            version = re.fullmatch(re.escape(self.model) + VERSION, reply.model) if self.version is None else None
            if version and self.without_key(version[1]) == version[1]:
                return
            raise EndpointError(
                self._line(f"'{reply.model}' answered in place of '{wanted}': set feedback_model.model to its name")
            )

    def _told(self, error: Any) -> str:
        """One line about a failed call."""
        import openai

        if isinstance(error, openai.APITimeoutError):
            return f"no answer within {self.compute.endpoint_timeout:g} s (compute.endpoint_timeout)"
        if isinstance(error, openai.APIConnectionError):
            cause = error.__cause__ or error
            return self._line(f"no connection, or it broke: {type(cause).__name__}: {cause}")
        if isinstance(error, openai.APIStatusError):
            body = error.body
            message = (body.get("message") or body.get("detail")) if isinstance(body, dict) else body
            return self._line(f"HTTP {error.status_code}: {message or 'no reason given'}")
        return self._line(f"the reply is no chat completion ({type(error).__name__}: {error})")

    def _line(self, text: str) -> str:
        printable = text.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair cannot be stored
        line = self.without_key(" ".join(printable.split()))
        return line if len(line) <= REASON_CHARACTERS else f"{line[: REASON_CHARACTERS - 1]}…"

    def without_key(self, text: str) -> str:
        """For what is shown or kept. A model's name, which a person gave, stands also where the key is part of it, and
        so does what is too short for a key: a placeholder."""
        return text.replace(self._key, "[key]") if len(self._key) >= LEAST_KEY else text


def is_endpoint(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def checked_url(url: str) -> str:
    """The URL without a slash at its end. Raises ModelError, without repeating it, where it may hold a secret."""
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ModelError(
            "the endpoint's URL may hold no user, password or query, since URLs are recorded: put the key into an "
            "environment variable (compute.endpoint_key_variable)"
        )
    if not is_endpoint(url) or not parts.hostname:
        raise ModelError(f"{url} is no endpoint: write a base URL such as http://127.0.0.1:8000/v1")
    return url.rstrip("/")


def _key(variable: str) -> str:
    """Raises ModelError for a key that no HTTP header can carry; the libraries' own errors would show it."""
    key = os.environ.get(variable, "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise ModelError(f"the key in the environment variable {variable} holds blanks or characters that no key has")
    return key


def _require_json(response: Any) -> None:
    """A success that is not JSON (the page of a proxy, half a body) is a broken connection: the client tries again."""
    import httpx2

    if response.is_success:
        response.read()
        try:
            response.json()
        except ValueError:
            kind = response.headers.get("content-type", "no content type")
            raise httpx2.RemoteProtocolError(f"HTTP {response.status_code} with {kind} that is not JSON") from None


def _reply(completion: Any) -> Reply:
    """Raises ValueError or TypeError for anything that a reply cannot be; the client itself checks no types."""
    if not completion.choices:
        raise ValueError(f"no choices in it: {getattr(completion, 'error', None) or 'no reason given'}")
    choice, usage = completion.choices[0], completion.usage

    def text(value: Any, what: str) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{what} is {type(value).__name__}, not text")
        return value

    def count(value: Any, what: str) -> int:
        if value is not None and (not isinstance(value, int) or value < 0):
            raise ValueError(f"{what} is {value!r}, not a count")
        return value or 0

    tokens = choice.logprobs.content if choice.logprobs is not None else None
    return Reply(
        text=text(choice.message.content or "", "the content"),
        tokens=tuple(
            ReplyToken(
                text(token.token, "a token"),
                token.logprob,
                tuple((text(other.token, "a token"), other.logprob) for other in token.top_logprobs),
            )
            for token in tokens
        )
        if tokens
        else None,
        tokens_in=count(usage.prompt_tokens, "prompt_tokens") if usage else 0,
        tokens_out=count(usage.completion_tokens, "completion_tokens") if usage else 0,
        model=text(completion.model, "the model's name") if completion.model else None,
        cut=choice.finish_reason == "length",
    )
