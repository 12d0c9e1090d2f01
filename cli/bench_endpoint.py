"""`dflash-mlx bench SET --endpoint URL`: a server in place of a pair."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .bench_options import DrawOptions, MeasureOptions, PairsOptions, ReportOptions
from .bench_report import Report
from .options import option

if TYPE_CHECKING:
    from dflash_mlx.bench.data.problems import Problems


def _server(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Endpoint", *names, help=help, metavar=metavar)


@dataclass(frozen=True)
class EndpointOptions:
    """A server that is measured instead of a pair."""

    endpoint: Annotated[
        str | None,
        _server(
            "--endpoint",
            help="Measure a server with OpenAI's chat API instead, as in http://localhost:8080/v1",
            metavar="URL",
        ),
    ] = None
    endpoint_model: Annotated[
        str | None,
        _server("--endpoint-model", help="The model as the server calls it", metavar="NAME"),
    ] = None
    concurrency: Annotated[
        int | None, _server("--concurrency", help="Requests at once, 1 by default", metavar="N")
    ] = None

    def __post_init__(self) -> None:
        alone = {"--endpoint-model": self.endpoint_model, "--concurrency": self.concurrency}
        for name, value in alone.items():
            if self.endpoint is None and value is not None:
                raise typer.BadParameter(f"{name} needs --endpoint")
        if self.endpoint and not self.endpoint_model:
            raise typer.BadParameter("--endpoint needs --endpoint-model, as the server calls it")
        if self.concurrency is not None and self.concurrency < 1:
            raise typer.BadParameter("--concurrency needs 1 at least")

    def check(
        self,
        model: PairsOptions,
        measure: MeasureOptions,
        sampling: DrawOptions,
        out: ReportOptions,
    ) -> None:
        """Refuse what does not reach a server."""
        unused = {
            "options of the pair (-m, -d, --bits, --draft-bits, --dtype, --kernels)": (
                model != PairsOptions()
            ),
            "--block": measure.block is not None,
            "--baseline": measure.baseline is not None,
            "--resume": out.resume is not None,
            "sampling options other than --temperature, --top-p and --seed": (
                sampling
                != DrawOptions(
                    temperature=sampling.temperature, top_p=sampling.top_p, seed=sampling.seed
                )
            ),
        }
        for name, given in unused.items():
            if given:
                raise typer.BadParameter(f"--endpoint measures a server; leave out {name}")


def measure_endpoint(
    server: EndpointOptions,
    problems: Sequence[Problems],
    measure: MeasureOptions,
    sampling: DrawOptions,
    run_code: bool,
    out: ReportOptions,
) -> None:
    """Measure a server on every set."""
    from dflash_mlx.bench.endpoint import Endpoint, load_of, run_endpoint, warm_up
    from dflash_mlx.bench.recording import Recording, set_entry

    assert server.endpoint is not None and server.endpoint_model is not None
    endpoint = Endpoint(server.endpoint, server.endpoint_model)
    concurrency = server.concurrency or 1
    plan = measure.plan(sampling, run_code)
    asked = {
        **asdict(server),
        "max_tokens": measure.max_tokens,
        "repeat": measure.repeat,
        "think": measure.think,
        "sampling": asdict(sampling),
        "run_code": run_code,
    }
    recording = Recording("endpoint", asked, [set_entry(each) for each in problems])
    report = Report(recording, out)
    with report.running(sum(len(each.items) for each in problems) * measure.repeat):
        for each in problems:
            report.say(f"{endpoint.model}: {each.dataset}")
            warm_up(endpoint, each, plan)
            answers, began = [], time.perf_counter()
            for answer in run_endpoint(endpoint, each, plan, concurrency):
                answers.append(answer)
                report.add([answer])
            load = load_of(answers, concurrency, time.perf_counter() - began)
            report.loaded_server(each.dataset, load)
