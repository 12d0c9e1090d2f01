"""Does greedy DFlash decoding equal plain decoding: ours, and the published packages for MLX.

    python tests/measure/peers.py --implementation ours|dflash|dflash-mlx [--tokens 100] [--json]

A cell is a reduced model of `tests/reduced.py` in float32, a prompt length, a draft behaviour and a
block size; `peers_cells.py` says which. It passes when the ids are those of the stock mlx-lm of the
same environment at width 1. Wrong ids, an exception and a hang fail; what a package declines by an
error of its own for that is refused. A family that the environment's mlx-lm lacks is left out.
Each family runs in a process of its own, as the packages replace methods of mlx-lm's classes.

Run it by its path, not by `-m`, and with the environment of the implementation: `dflash-mlx` is
imported as `dflash_mlx`, as ours is. None needs a GPU, a hub or PyTorch:

    python -m venv /tmp/dflash && /tmp/dflash/bin/pip install "mlx[cpu]==0.32.0" mlx-lm==0.31.3
    /tmp/dflash/bin/pip install --no-deps dflash==0.1.0
    python -m venv /tmp/dflash-mlx && /tmp/dflash-mlx/bin/pip install "mlx[cpu]" dflash-mlx==0.1.8

Without Metal, `dflash-mlx` 0.1.8 rolls gated-delta layers back by its fallback, not by its kernel:
what it shows there for qwen3_next and qwen3_5 says nothing about a Mac. Its block is fixed (its
mode "dflash"); its default changes the block by measured times, which no one can repeat.
"""

import argparse
import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

from peers_cells import BEHAVIOURS, BLOCKS, CELLS, LENGTHS, Absent, Bench, Result, families

STARTUP_S = 900  # imports, building the model and its plain texts
PACKAGES = {"ours": "dflash-mlx", "dflash": "dflash", "dflash-mlx": "dflash-mlx"}
READY = "ready"
OUTCOMES = ("passed", "failed", "refused")


def work(out: Connection, implementation: str, family: str, tokens: int, start: int) -> None:
    """In the child: sends whether the family is there, then a result per cell."""
    try:
        bench = Bench(implementation, family, tokens)
    except Absent as error:
        out.send(str(error))
        return
    out.send(READY)
    for cell in CELLS[start:]:
        out.send(bench.run(cell))


def run_family(implementation: str, family: str, tokens: int, timeout: float) -> list[Result] | str:
    """A result per cell, or why there are none; after a hang or a crash a new process goes on."""
    results: list[Result] = []
    while len(results) < len(CELLS):
        news = supervise(implementation, family, tokens, timeout, len(results))
        if isinstance(news, str):
            return news
        results += news
    return results


def supervise(
    implementation: str, family: str, tokens: int, timeout: float, start: int
) -> list[Result] | str:
    """What one child sends; the cell that hangs or kills it is the last."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(send, implementation, family, tokens, start))
    child.start()
    send.close()
    results: list[Result] = []
    try:
        if (first := greeting(receive)) != READY:
            return first
        for cell in CELLS[start:]:
            if not receive.poll(timeout):
                return [*results, Result(cell, "failed", f"hangs: no end in {timeout:g} s")]
            results.append(receive.recv())
    except EOFError:
        child.join()
        reason = f"the process ended with {child.exitcode}"
        return [*results, Result(CELLS[start + len(results)], "failed", reason)]
    finally:
        child.kill()
        child.join()
    return results


def greeting(receive: Connection) -> str:
    """A child that fails before it decodes shows a mistake in this script or the environment."""
    try:
        if receive.poll(STARTUP_S):
            return receive.recv()
    except EOFError:
        pass
    raise SystemExit("the process of a family did not start; see the error above")


def counted(results: Iterable[Result]) -> dict[str, int]:
    counts = Counter(result.outcome for result in results)
    return {outcome: counts[outcome] for outcome in OUTCOMES}


def summary(results: list[Result]) -> dict[str, Any]:
    """Counts, per behaviour as well, and what went wrong first."""
    by_behaviour = {
        name: counted(r for r in results if r.cell.behaviour == name) for name in BEHAVIOURS
    }
    first = next((r for r in results if r.outcome != "passed"), None)
    reason = f"{first.cell}: {first.reason}" if first else ""
    return counted(results) | {"behaviours": by_behaviour, "first": reason}


def accepted_per_round(results: list[Result]) -> dict[str, float]:
    """Whether the drafts did as they were told: the mean over the cells that passed."""
    means = {}
    for name in BEHAVIOURS:
        passed = [r for r in results if r.cell.behaviour == name and r.outcome == "passed"]
        rounds = sum(r.rounds for r in passed)
        means[name] = round(sum(r.accepted for r in passed) / max(1, rounds), 2)
    return means


def document(
    args: argparse.Namespace, done: dict[str, list[Result]], absent: dict[str, str]
) -> dict[str, Any]:
    every = [result for results in done.values() for result in results]
    names = ("mlx", "mlx-lm", PACKAGES[args.implementation])
    return {
        "implementation": args.implementation,
        "versions": {name: version(name) for name in names},
        "tokens": args.tokens,
        "blocks": BLOCKS,
        "prompt_lengths": LENGTHS,
        "total": summary(every),
        "accepted_per_round": accepted_per_round(every),
        "off_script": sum(result.off_script for result in every),
        "families": {family: summary(results) for family, results in done.items()},
        "not_there": absent,
        "not_passed": {
            family: [f"{r.outcome} {r.cell}: {r.reason}" for r in results if r.outcome != "passed"]
            for family, results in done.items()
        },
    }


def row(name: str, counts: dict[str, Any]) -> str:
    numbers = "".join(f"{counts[outcome]:9}" for outcome in OUTCOMES)
    return f"{name:18}{numbers}  {counts.get('first', '')}"


def closing(report: dict[str, Any]) -> str:
    total = report["total"]
    lines = [row("total", total | {"first": ""})]
    lines += [row(f"  {name}", counts) for name, counts in total["behaviours"].items()]
    lines += [f"not in this mlx-lm: {name} ({why})" for name, why in report["not_there"].items()]
    lines.append(f"accepted per round in cells that passed: {report['accepted_per_round']}")
    if report["off_script"]:
        lines.append(f"{report['off_script']} cells whose draft lost its place: do not trust them")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--implementation", choices=list(PACKAGES), required=True)
    parser.add_argument("--tokens", type=int, default=100, help="generated per cell")
    parser.add_argument("--family", action="append", choices=families(), help="only these")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds per cell")
    parser.add_argument("--json", action="store_true", help="one document on stdout")
    args = parser.parse_args()
    table = sys.stderr if args.json else sys.stdout
    header = document(args, {}, {})["versions"]
    print(f"{args.implementation}: {header}, {args.tokens} tokens, {len(CELLS)} cells", file=table)
    print(f"{'family':18}" + "".join(f"{outcome:>9}" for outcome in OUTCOMES), file=table)
    done: dict[str, list[Result]] = {}
    absent: dict[str, str] = {}
    for family in args.family or families():
        results = run_family(args.implementation, family, args.tokens, args.timeout)
        if isinstance(results, str):
            absent[family] = results
            continue
        done[family] = results
        print(row(family, summary(results)), file=table, flush=True)
    report = document(args, done, absent)
    print(closing(report), file=table)
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
