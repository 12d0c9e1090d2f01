"""Speed of a server that speaks OpenAI's chat API, whatever runs behind it.

Seen from outside: tokens as the server counts them in its `usage`, times as they arrive here, the
network included. How it decodes is not told, so there are no rounds and no ids.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from ..errors import DownloadError, UsageError
from .data.problems import Problem, Problems
from .data.scoring import score
from .records import Answer, Arm, Turn
from .run import WARM_TOKENS, Plan

ARM = Arm("endpoint")
TIMEOUT = 600.0  # seconds without a byte
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Endpoint:
    """A server.

    Attributes:
        url: up to and with `/v1`.
        model: as the server calls it.
    """

    url: str
    model: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UsageError(f"{self.url!r} is no address, expected http://localhost:8080/v1")

    def stream(self, messages: Messages, plan: Plan, seed: int) -> Iterator[dict[str, Any]]:
        """The events of one answer.

        Raises:
            DownloadError: the server cannot be reached, refuses or breaks off.
        """
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": plan.max_tokens,
            "temperature": plan.sampling.temperature,
            "top_p": plan.sampling.top_p,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if plan.think is not None:
            body["chat_template_kwargs"] = {"enable_thinking": plan.think}
        address = self.url.rstrip("/") + "/chat/completions"
        headers = {"Content-Type": "application/json"}
        request = Request(address, json.dumps(body).encode(), headers)
        try:
            with urlopen(request, timeout=TIMEOUT) as response:
                yield from _events(response)
        except HTTPError as error:
            said = error.read(200).decode(errors="replace").strip()
            raise DownloadError(f"{address} answers {error.code}: {said}") from error
        except URLError as error:
            raise DownloadError(f"{address} cannot be reached: {error.reason}") from error
        except (OSError, HTTPException, ValueError) as error:
            raise DownloadError(f"{address} broke off: {error}") from error


@dataclass(frozen=True)
class Load:
    """What a server did under so many requests at once.

    Attributes:
        tokens: generated in all.
        seconds: from the first request to the last answer.
    """

    concurrency: int
    requests: int
    tokens: int
    seconds: float

    @property
    def tok_s(self) -> float:
        """Tokens per second of all requests together."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def ask(endpoint: Endpoint, problem: Problem, plan: Plan, seed: int) -> tuple[Turn, ...]:
    """Hold one conversation.

    Raises:
        DownloadError: as `Endpoint.stream`.
    """
    messages: Messages = []
    turns: list[Turn] = []
    for text in problem.turns:
        messages.append({"role": "user", "content": text})
        turns.append(_turn(endpoint.stream(messages, plan, seed)))
        messages.append({"role": "assistant", "content": turns[-1].text})
    return tuple(turns)


def run_endpoint(
    endpoint: Endpoint,
    problems: Problems,
    plan: Plan,
    concurrency: int,
) -> Iterator[Answer]:
    """Measure a server on one set, with so many requests at once.

    Yields:
        answers as they are complete; a request that fails is one that says why.
    """
    tasks = [
        (number, repeat, problem)
        for repeat in range(plan.repeat)
        for number, problem in enumerate(problems.items, repeat * len(problems.items))
    ]

    def answer(number: int, repeat: int, problem: Problem) -> Answer:
        return _answer(endpoint, problems.dataset, problem, repeat, number, plan)

    pool = ThreadPoolExecutor(concurrency)
    try:
        waiting: set[Future[Answer]] = {pool.submit(answer, *task) for task in tasks}
        while waiting:
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def load_of(answers: Sequence[Answer], concurrency: int, seconds: float) -> Load:
    """The server's throughput from answers and the time they took in all."""
    tokens = sum(turn.tokens for answer in answers for turn in answer.turns)
    return Load(concurrency, len(answers), tokens, seconds)


def warm_up(endpoint: Endpoint, problems: Problems, plan: Plan) -> None:
    """One request that is not counted: servers load their model on the first.

    Raises:
        DownloadError: it fails.
    """
    ask(endpoint, problems.items[0], replace(plan, max_tokens=WARM_TOKENS), plan.seed)


def _answer(
    endpoint: Endpoint, dataset: str, problem: Problem, repeat: int, number: int, plan: Plan
) -> Answer:
    turns: tuple[Turn, ...] = ()
    failed = correct = None
    try:
        turns = ask(endpoint, problem, plan, plan.options(number).seed or 0)
        correct = score(dataset, problem, turns[-1].text, run_code=plan.run_code)
    except DownloadError as error:
        failed = str(error)
    return Answer(
        pair=endpoint.model,
        dataset=dataset,
        problem=problem.id,
        repeat=repeat,
        arm=ARM.name,
        turns=turns,
        correct=correct,
        failed=failed,
    )


def _turn(events: Iterator[dict[str, Any]]) -> Turn:
    """Read one answer to its end; events with text stand for tokens where none are counted."""
    began = time.perf_counter()
    first = last = 0.0
    pieces: dict[str, list[str]] = {"content": [], "thinking": []}
    usage: dict[str, Any] = {}
    reason, count = None, 0
    for event in events:
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            reason = choice.get("finish_reason") or reason
            delta = choice.get("delta") or {}
            thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
            if delta.get("content") or thought:
                last = time.perf_counter()
                first, count = first or last, count + 1
                pieces["content"].append(delta.get("content") or "")
                pieces["thinking"].append(thought)
    if not count and not reason:
        raise DownloadError("the answer ended before it began; see the server's own messages")
    ended = last or time.perf_counter()
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Turn(
        prompt_tokens=usage.get("prompt_tokens") or 0,
        cached_tokens=cached,
        ids=(),
        tokens=usage.get("completion_tokens") or count,
        rounds=(),
        ttft_s=(first or ended) - began,
        decode_s=ended - (first or ended),
        peak_bytes=0,
        text="".join(pieces["content"]),
        thinking="".join(pieces["thinking"]),
        finish_reason=reason,
    )


def _events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """Server-sent events as JSON."""
    for line in response:
        kind, _, data = line.decode().strip().partition(":")
        if kind != "data" or data.strip() == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event and "choices" not in event:
            raise DownloadError(f"the server reports: {event['error']}")
        yield event
