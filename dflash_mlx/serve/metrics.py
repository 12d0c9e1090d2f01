"""Figures for Prometheus; each server has its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .. import __version__
from ..engine import Engine
from ..prefix.cache import PrefixCache
from .served import Line, Served

OTHER = "other"  # the path of requests that lead nowhere
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
RATES = (1, 2, 5, 10, 20, 35, 50, 75, 100, 150, 200, 300, 500)
NOW = {
    "running": "Requests whose prompt is read or that are decoded",
    "waiting": "Requests that have no place yet",
    "memory": "Bytes that the caches of running requests may come to need",
    "memory_limit": "Bytes that they may need at most",
}
KEPT = {
    "bytes": ("nbytes", "Bytes of prefixes in memory"),
    "disk_bytes": ("disk", "Bytes of prefixes in files"),
    "entries": ("entries", "Pieces of prefixes that are kept"),
}
OF_PREFIXES = {
    "requests": "Prompts that were looked up",
    "hits": "Prompts of which something was known",
    "asked": "Tokens of all prompts",
    "found": "Tokens of these that were known",
    "evicted": "Pieces that had to leave memory",
    "discarded": "Files that were damaged or of something else",
}
SO_FAR = {
    "finished": "Requests that ended by themselves",
    "cancelled": "Requests whose client left",
    "failed": "Requests that an error ended",
    "refused": "Requests for which there was no room",
    "tokens": "Tokens generated",
    "rounds": "Rounds of draft and verification",
    "drafted": "Tokens the draft proposed",
    "accepted": "Tokens of these that the target kept",
    "prefilled": "Prompt tokens computed",
    "cached": "Prompt tokens taken from the prefix cache",
}


class Metrics:
    """What a server counts; `paths` are those it tells apart."""

    def __init__(self, served: Served, paths: frozenset[str]) -> None:
        self._paths, pair = paths, served.pair
        self._registry = CollectorRegistry()
        self._registry.register(_OfEngine(served.engine))
        if served.prefixes is not None:
            self._registry.register(_OfPrefixes(served.prefixes))
        own = self._registry
        Info("dflash", "What is served", registry=own).info(
            {"version": __version__, "model": pair.name, "draft": pair.draft_name or ""}
        )
        self._requests = Counter(
            "dflash_requests", "Requests by path and status", ["path", "status"], registry=own
        )
        self._seconds = Histogram(
            "dflash_request_seconds",
            "Time of answered requests",
            ["path"],
            buckets=SECONDS,
            registry=own,
        )
        self._first = Histogram(
            "dflash_first_token_seconds", "Time to the first token", buckets=SECONDS, registry=own
        )
        self._rate = Histogram(
            "dflash_tokens_per_second",
            "Tokens after the first, per second",
            buckets=RATES,
            registry=own,
        )
        self._per_round = Histogram(
            "dflash_tokens_per_round", "Tokens a round adds", buckets=range(1, 17), registry=own
        )

    def count(self, line: Line) -> None:
        """Count a request."""
        path = line.path if line.path in self._paths else OTHER
        self._requests.labels(path, str(line.status)).inc()
        self._seconds.labels(path).observe(line.seconds)
        answer = line.answer
        if answer and answer["generated_tokens"]:
            self._first.observe(_number(answer["ttft_s"]))
        if answer and answer["rounds"]:
            self._rate.observe(_number(answer["decode_tok_s"]))
            self._per_round.observe(_number(answer["tokens_per_round"]))

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)


class _OfEngine(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        counters = asdict(self._engine.counters)
        for name, text in NOW.items():
            unit = "_bytes" if name.startswith("memory") else ""
            yield GaugeMetricFamily(f"dflash_{name}{unit}", text, value=counters[name])
        for name, text in SO_FAR.items():
            yield CounterMetricFamily(f"dflash_{name}", text, value=counters[name])


class _OfPrefixes(Collector):
    def __init__(self, prefixes: PrefixCache) -> None:
        self._prefixes = prefixes

    def collect(self) -> Iterator[Metric]:
        found = asdict(self._prefixes.statistics())
        for name, (what, text) in KEPT.items():
            yield GaugeMetricFamily(f"dflash_prefix_{name}", text, value=found[what])
        for name, text in OF_PREFIXES.items():
            yield CounterMetricFamily(f"dflash_prefix_{name}", text, value=found[name])


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return value
