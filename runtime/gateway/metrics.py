"""Metrics in Prometheus' text format: what answers took, what engines hold, what the processes weigh.

Knows: prometheus-client, meta of answers, engines' stats. Must not know: HTTP routes, dialects.
Names follow those that dashboards for inference servers know, under the prefix `branchwork_`. Units: seconds, tokens,
bytes, pages of KV. Counters that an engine keeps begin anew when it does, as Prometheus expects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from branchwork.runtime.gateway.engines import Facts, Told, apart
from branchwork.runtime.gateway.journal import Asked
from branchwork.runtime.gateway.local import Ended
from branchwork.runtime.gateway.served import Served

CONTENT_TYPE = CONTENT_TYPE_LATEST
P = "branchwork_"
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
_COUNTERS = {  # name -> the engine's name for it, help
    "prompt_tokens": ("prompt_tokens", "Tokens of the prompts of ended requests"),
    "cached_tokens": ("reused_tokens", "Prompt tokens whose KV was in the radix tree"),
    "computed_tokens": ("computed_tokens", "Tokens run through the model"),
    "generation_tokens": ("generated_tokens", "Tokens of answers"),
    "drafted_tokens": ("drafted_tokens", "Tokens guessed ahead"),
    "accepted_tokens": ("accepted_tokens", "Guesses that came true"),
    "engine_requests": ("finished", "Requests that engines have ended"),
    "engine_steps": ("steps", "Steps planned"),
    "preemptions": ("preemptions", "Requests put back in the queue for want of KV pages"),
    "evicted_pages": ("pages_evicted", "KV pages taken from the radix tree"),
}
_GAUGES = {
    "num_requests_running": ("running", "Requests that hold KV"),
    "num_requests_waiting": ("waiting", "Requests in the queue"),
    "prefix_cache_hit_rate": ("hit_rate", "Cached of the prompt tokens since the engine's start, 0 to 1"),
    "kv_cache_pages": ("pages", "Pages of the KV cache"),
    "kv_cache_free_pages": ("pages_free", "Pages that hold nothing"),
    "kv_cache_cached_pages": ("pages_cached", "Pages in the radix tree"),
    "model_weight_bytes": ("weight_bytes", "Weights in memory"),
    "kv_cache_bytes": ("kv_bytes", "The whole KV cache"),
    "engine_resident_memory_bytes": ("resident_bytes", "Memory of the engine's process"),
}


class Metrics:
    """A registry of its own; nothing else of the process shows up in it."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._engines = _Engines()
        registry.register(self._engines)
        ProcessCollector(registry=registry)

        def histogram(name: str, about: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(P + name, about, ["model"], registry=registry, buckets=buckets)

        self._first = histogram("time_to_first_token_seconds", "From arrival at the engine to the first token", _LONG)
        self._between = histogram("inter_token_latency_seconds", "Mean time between two tokens of an answer", _SHORT)
        self._whole = histogram("e2e_request_latency_seconds", "From arrival at the engine to the end", _LONG)
        self._queued = histogram("request_queue_time_seconds", "From arrival at the engine to the first step", _LONG)
        self._prompt = histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self._answer = histogram("request_generation_tokens", "Tokens of an answer", _TOKENS)
        reasons = ["model", "finished_reason"]
        self._ended = Counter(P + "request_success", "Answers, by how they ended", reasons, registry=registry)
        labels = ["method", "route", "status"]
        self._http = Counter(P + "http_requests", "HTTP requests that have ended", labels, registry=registry)

    def answered(self, served: Served, ended: Ended) -> None:
        """An answer is whole."""
        model, meta = served.name, ended.meta
        first, total, tokens = meta["first_s"], meta["total_s"], meta.get("completion_tokens", 0)
        self._queued.labels(model).observe(meta["queued_s"])
        self._whole.labels(model).observe(total)
        self._prompt.labels(model).observe(meta["prompt_tokens"])
        self._ended.labels(model, meta.get("finish_reason", "choice")).inc()
        if tokens:
            self._first.labels(model).observe(first)
            self._answer.labels(model).observe(tokens)
        if tokens > 1:
            self._between.labels(model).observe((total - first) / (tokens - 1))

    def asked(self, asked: Asked) -> None:
        """An HTTP request has ended."""
        self._http.labels(asked.method if asked.route else "", asked.route, str(asked.status)).inc()

    def text(self, told: Sequence[Told], under_way: int) -> bytes:
        """Everything, with what the engines say now."""
        self._engines.told, self._engines.under_way = apart(told), under_way
        return generate_latest(self._registry)


class _Engines(Collector):
    """What engines said when they were asked last."""

    def __init__(self) -> None:
        self.told: Sequence[Told] = ()
        self.under_way = 0

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(P + "http_requests_under_way", "HTTP requests that are not answered", self.under_way)
        up = GaugeMetricFamily(P + "engine_up", "Whether the engine answers", labels=["model"])
        usage = GaugeMetricFamily(P + "kv_cache_usage_ratio", "KV pages that requests hold, 0 to 1", labels=["model"])
        for one in self.told:
            up.add_metric([one.row.name], one.facts is not None)
        spoken = [(one.row.name, one.facts) for one in self.told if one.facts is not None]
        for model, facts in spoken:
            usage.add_metric([model], held(facts))
        yield from (up, usage)
        for name, (key, about) in _COUNTERS.items():
            yield _filled(CounterMetricFamily(P + name, about, labels=["model"]), key, spoken)
        for name, (key, about) in _GAUGES.items():
            yield _filled(GaugeMetricFamily(P + name, about, labels=["model"]), key, spoken)


def held(facts: Facts) -> float:
    """The share of KV pages that requests hold; what is only cached does not count, since it can be evicted."""
    pages = int(facts["pages"])
    return (pages - int(facts["pages_available"])) / pages if pages else 0.0


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily, key: str, spoken: Iterable[tuple[str, Facts]]
) -> CounterMetricFamily | GaugeMetricFamily:
    for model, facts in spoken:
        family.add_metric([model], float(facts[key]))
    return family
