"""What `serve` prints: that it runs, and a line a request."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from .render import Screen

if TYPE_CHECKING:
    from dflash_mlx.loading import Pair
    from dflash_mlx.serve.served import Line


class Log:
    """Writes to stderr for people, or JSON to stdout for programs."""

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self._json, self._quiet = as_json, quiet
        self.screen = Screen(quiet=quiet or as_json)

    def start(self, url: str, pair: Pair, names: tuple[str, ...]) -> None:
        """The server is about to listen."""
        if self._json:
            self._write(
                event="start",
                url=f"{url}/v1",
                model=names[0],
                draft=pair.draft_name,
                max_context=pair.max_context,
            )
            return
        draft = f" with {pair.draft_name}" if pair.draft_name else ""
        draft += f", {pair.ranks.description}," if pair.ranks.size > 1 else ""
        # Said even where requests are not: it is the one thing that must be known.
        print(f"serving {names[0]}{draft} at {url}/v1", file=sys.stderr, flush=True)

    def request(self, line: Line) -> None:
        """A request was answered."""
        if self._quiet:
            return
        if self._json:
            self._write(event="request", **asdict(line))
        else:
            print(f"{time.strftime('%H:%M:%S')} {sentence(line)}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """The server has ended."""
        if self._json:
            self._write(event="end")
        else:
            self.screen.note("stopped")

    def _write(self, **fields: object) -> None:
        print(json.dumps({"time": round(time.time(), 3), **fields}), flush=True)


def sentence(line: Line) -> str:
    """A request in one line."""
    text = f"{line.status} {line.method} {line.path} {line.seconds:.2f} s"
    answer = line.answer
    if answer is None:
        return text
    return (
        f"{text}, {answer['prompt_tokens']} prompt tokens ({answer['cached_tokens']} cached), "
        f"{answer['generated_tokens']} tokens at {answer['decode_tok_s']} tokens/s, "
        f"{answer['tokens_per_round']} a round"
    )
