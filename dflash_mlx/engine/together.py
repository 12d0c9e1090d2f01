"""A round of several generations in one pass of each network, each with its own acceptance.

Texts share the passes; what is theirs alone is where they stand (`batched.py`), how their tokens
are chosen, and with which random key: that of the round they would have run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import mlx.core as mx

from ..accept import accept_greedy, accept_sampled
from ..decode import Result, read, recent, result, round_key
from ..drafts.dflash import DFlashDraft
from ..generation import Course
from ..kv import KVCache
from ..loading import Pair
from ..sampling import process
from ..session import Session
from ..stats import Round
from ..step import Judged, drawn, histories, judge_logits, reported

Commit = Callable[[int, Sequence[int]], None]


class Text:
    """One of the texts of a round: how its tokens are chosen, as `step.py` does for one text."""

    def __init__(self, course: Course) -> None:
        self.session = course.session
        self.start = course.session.cache.length
        self.anchor = mx.array([course.anchor], mx.int32)
        self.drafted: mx.array
        self._sampling, self._logprobs = course.options.sampling, course.options.logprobs
        self._history = recent(course.session.ids, self._sampling.history)
        self._key = round_key(course.seed, self.start)
        self._logq: mx.array | None = None

    def draft(self, draft: DFlashDraft, hidden: mx.array, logits: mx.array) -> mx.array:
        """The block, int32 [width], from what the draft says of it: [width - 1, ...]."""
        logits = process(logits, histories(self._history, self.anchor), self._sampling)
        key = mx.random.split(self._key)[0]
        self.drafted, self._logq, _ = draft.propose(
            hidden, logits, self.anchor, self._sampling, key
        )
        return mx.concatenate([self.anchor, self.drafted])

    def accept(self, block: mx.array, logits: mx.array) -> mx.array:
        """What of the block is kept, as a round of its own packs it, by the target's logits."""
        judged = self._judge(block, logits)
        if self._sampling.greedy:
            packed = accept_greedy(self.drafted, judged.said)
        else:
            assert self._logq is not None
            key = mx.random.split(self._key)[1]
            packed = accept_sampled(self.drafted, self._logq, judged.said, key)
        return reported(packed, judged, self._logprobs)

    def choose(self, logits: mx.array) -> mx.array:
        """The same of a round without a draft, by the target's logits [1, vocab]."""
        judged = self._judge(self.anchor, logits)
        token = drawn(judged.said, self._sampling, self._key)
        packed = mx.concatenate([mx.zeros(1, mx.int32), token])
        return reported(packed, judged, self._logprobs)

    def _judge(self, block: mx.array, logits: mx.array) -> Judged:
        logits = process(logits, histories(self._history, block), self._sampling)
        return judge_logits(logits, self._sampling, self._logprobs)


def share(pair: Pair, courses: Sequence[Course], width: int) -> tuple[list[Round], list[int]]:
    """A round of each, in one pass, and how many drafted tokens were right, wanted or not."""
    done = run_round(pair, courses, width)
    rounds = [course.join(*one) for course, one in zip(courses, done, strict=True)]
    return rounds, [result.accepted for result, _ in done]


def run_round(pair: Pair, courses: Sequence[Course], width: int) -> list[tuple[Result, Commit]]:
    """A round of each, for `Course.join`.

    Args:
        pair: whose target takes several texts.
        courses: generations with a first token, at a session each.
        width: tokens verified of each; 1 leaves the draft out.
    """
    texts = [Text(course) for course in courses]
    blocks = _drafted(pair, texts, width) if width > 1 else mx.stack([t.anchor for t in texts])
    hidden, features, states = pair.target.forward(
        blocks,
        [t.start for t in texts],
        [t.session.cache.begin(t.start, width, fixed=False) for t in texts],
    )
    for text, state in zip(texts, states, strict=True):
        text.session.cache.update(state)
    logits = pair.target.logits(hidden)
    if width > 1:
        packed = [t.accept(blocks[i], logits[i]) for i, t in enumerate(texts)]
    else:
        packed = [t.choose(logits[i]) for i, t in enumerate(texts)]
    # The round's one transfer.
    numbers = iter(read(pair.ranks.decide(mx.concatenate(packed))))
    done: list[tuple[Result, Commit]] = []
    for i, (course, own) in enumerate(zip(courses, packed, strict=True)):
        kept = None if features is None else features[i : i + 1]
        row = list(islice(numbers, own.size))
        done.append((result(row, width), _commit(course, kept, width)))
    return done


def _drafted(pair: Pair, texts: Sequence[Text], width: int) -> mx.array:
    """The blocks of all texts, int32 [B, width]."""
    draft, target = pair.draft, pair.target
    assert draft is not None
    extend([t.session for t in texts], draft)
    masks = mx.full(width - 1, draft.config.mask_token_id, mx.int32)
    ids = mx.stack([mx.concatenate([t.anchor, masks]) for t in texts])
    hidden, states = draft.forward(
        target.embed_block(ids),
        [t.start for t in texts],
        [_context(t.session).begin(t.start, width, fixed=False) for t in texts],
    )
    for text, state in zip(texts, states, strict=True):
        _context(text.session).update(state)
    hidden = hidden[:, 1:]
    logits = target.draft_logits(hidden, draft.shape_logits)
    blocks = mx.stack([t.draft(draft, hidden[i], logits[i]) for i, t in enumerate(texts)])
    return pair.ranks.decide(blocks)


def extend(sessions: Sequence[Session], draft: DFlashDraft) -> None:
    """Add the features that wait to the contexts, in one pass where all have as many rows."""
    waiting = [s for s in sessions if s.features is not None]
    rows = {s.features.shape[1] for s in waiting if s.features is not None}
    if len(rows) != 1:
        for session in waiting:
            session.flush()
        return
    behind = [s.cache.length - _context(s).length for s in waiting]
    # Rows that were rejected trail; what comes next overwrites them.
    features = mx.concatenate([s.features for s in waiting if s.features is not None])
    states = draft.extend(
        features[:, : max(behind)],
        [_context(s).length for s in waiting],
        [_context(s).begin(_context(s).length, max(behind), fixed=False) for s in waiting],
    )
    for session, state, kept in zip(waiting, states, behind, strict=True):
        _context(session).update(state)
        _context(session).commit(kept)
        session.features = None


def _commit(course: Course, features: mx.array | None, width: int) -> Commit:
    """What keeps a text's rows of this round."""
    session = course.session

    def keep(anchor: int, tokens: Sequence[int]) -> None:
        if width == 1 and course.drafts and features is not None:
            session.keep([anchor], features)
        else:
            session.commit([anchor, *tokens[:-1]], features if width > 1 else None)

    return keep


def _context(session: Session) -> KVCache:
    assert session.context is not None
    return session.context
