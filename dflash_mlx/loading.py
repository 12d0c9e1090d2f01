"""From a name to a `Pair`: find the files, check that they fit, load target and draft."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path

from . import pairfile, pairs, sharding
from .checkpoint import AGAIN, check_names, read_config, read_tensors
from .config import DraftConfig
from .costs import Corrected
from .draftcheck import TEXT, check_draft
from .drafts import draft_for
from .drafts.dflash import DFlashDraft
from .drafts.quantised import GROUP_SIZE, dequantise, is_quantised, quantise, quantise_as_stored
from .errors import CheckpointError, UsageError
from .finding import check_fit, find_draft, find_target, text_of
from .fitting import memory_of, shared
from .guide import words_of
from .kernels.choice import OFF, Kernels, kernels_of
from .kv_quantised import KVBits
from .machine import this_machine
from .memory import Memory
from .ranks import ALONE, Ranks
from .span import SINK, Span, span_of
from .targets import family_of, target_for
from .targets.base import Target
from .trial import Trial
from .width import Calibration

if TYPE_CHECKING:
    from llguidance import LLTokenizer

# What mlx-lm raises for files that are not what they claim to be.
UNREADABLE = (KeyError, OSError, OverflowError, RuntimeError, TypeError, ValueError)
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
BITS = (4, 8)
Original = Callable[[], DFlashDraft]


@dataclass(eq=False)
class Pair:
    """A target, the draft that belongs to it, and their tokenizer.

    Attributes:
        tokenizer: mlx-lm's wrapper.
        eos_ids: tokens that end an answer.
        max_context: tokens of prompt and answer together.
        compiles: whether rounds are compiled by default: on a GPU, where building graphs in
            Python is what a round waits for. On the CPU the first use of every compiled piece
            would wait seconds for a C++ compiler.
        kernels: what rounds run by.
        steps: compiled rounds, kept between generations; they hold the weights as they were when
            first used.
        trials: per kind of round, whether kernels make it faster.
        costs: what rounds take here, once that was asked for.
        memory: what answers take here; None where that is not known, and then nothing is refused.
        calibrations: what is known of the draft's probabilities, of greedy and of sampled text.
    """

    target: Target
    draft: DFlashDraft | None
    tokenizer: Any
    eos_ids: frozenset[int]
    max_context: int
    name: str
    draft_name: str | None
    kernels: Kernels = OFF
    compiles: bool = field(default_factory=lambda: mx.default_device().type == mx.gpu)
    steps: dict[Any, Callable[..., Any]] = field(default_factory=dict, repr=False)
    trials: dict[Any, Trial] = field(default_factory=dict, repr=False)
    costs: Corrected | None = field(default=None, repr=False)
    memory: Memory | None = field(default=None, repr=False)
    calibrations: dict[bool, Calibration] = field(default_factory=dict, repr=False)

    @cached_property
    def by_kernels(self) -> tuple[Target, DFlashDraft | None]:
        """Target and draft as `kernels` runs them; caches fit both forms."""
        draft = self.draft.with_kernels(self.kernels) if self.draft else None
        return self.target.with_kernels(self.kernels), draft

    @property
    def ranks(self) -> Ranks:
        """The processes that share the target."""
        return self.target.ranks

    @cached_property
    def words(self) -> LLTokenizer:
        """The vocabulary as guides read it. Raises as `guide.words_of`."""
        return words_of(self.tokenizer, self.target.vocab_size, self.eos_ids)

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Ids of a text, with the tokenizer's special tokens unless the text begins with them."""
        if not isinstance(prompt, str):
            return list(prompt)
        bos = self.tokenizer.bos_token
        special = bos is None or not prompt.startswith(bos)
        return list(self.tokenizer.encode(prompt, add_special_tokens=special))


def load(
    model: str = pairs.EMBEDDED,
    draft: str | None = None,
    *,
    speculate: bool = True,
    bits: int | None = None,
    draft_bits: int | None = None,
    dtype: str | None = None,
    kernels: str = "auto",
    kv_bits: int | None = None,
    draft_kv_bits: int | None = None,
    kv_group_size: int = 64,
    draft_window: int | None = None,
    draft_sink: int = SINK,
    revision: str | None = None,
    draft_revision: str | None = None,
    check: bool = True,
    quiet: bool = False,
    ranks: Ranks = ALONE,
) -> Pair:
    """Load a target and its draft.

    Args:
        model: a short name (`smollm2-135m`, `Qwen3-4B`), a hub id or a local folder; a folder or
            repo with a pair.json holds its draft, too.
        draft: a hub id or a local folder; by default the draft that is known for the target.
        speculate: False loads no draft.
        bits: quantise the target to 4 or 8 bits while loading.
        draft_bits: the same for the draft.
        dtype: floating type to compute in: float32, bfloat16 or float16. By default the files'
            own on a GPU, float32 on the CPU.
        kernels: "auto" takes our Metal kernels where they pay, "on" wherever they can run (their
            definitions in plain MLX where there is no Metal), "off" takes none.
        kv_bits: keep the target's keys and values in 8 or 4 bits.
        draft_kv_bits: the same for the draft's.
        kv_group_size: 32, 64 or 128 of their elements share a scale.
        draft_window: full layers of the draft see the last so many positions of the text alone,
        draft_sink: and the first so many.
        revision: branch, tag or commit of a target on the hub.
        draft_revision: the same for the draft.
        check: refuse a draft that does not work as it was loaded (`draftcheck`). False is for
            measuring one that is known not to; a text is the target's own either way.
        quiet: show no progress.
        ranks: the processes that share the target, each of which calls this; without kernels.

    Raises:
        DFlashError: one line that says what was given, what was expected and what to do.
    """
    _check_options(bits, draft_bits, dtype)
    wanted = _Wanted(
        model=model,
        draft=draft,
        speculate=speculate,
        bits=bits,
        draft_bits=draft_bits,
        dtype=dtype,
        kernels=kernels_of(kernels, ranks.size),
        kv=KVBits(kv_bits, kv_group_size) if kv_bits is not None else None,
        draft_kv=KVBits(draft_kv_bits, kv_group_size) if draft_kv_bits is not None else None,
        span=span_of(draft_window, draft_sink) if draft_window is not None else None,
        revision=revision,
        draft_revision=draft_revision,
        quiet=quiet,
        ranks=ranks,
    )
    pair, original = ranks.together(lambda: _read(wanted))
    if check and pair.draft is not None and original is not None:
        with ranks.meeting():
            ids, name = pair.tokenizer.encode(TEXT), str(pair.draft_name)
            check_draft(pair.target, pair.draft, ids, name, original, draft_bits)
    pair.memory = shared(pair.memory, ranks)
    return pair


@dataclass(frozen=True)
class _Wanted:
    """What `load` was asked for."""

    model: str
    draft: str | None
    speculate: bool
    bits: int | None
    draft_bits: int | None
    dtype: str | None
    kernels: Kernels
    kv: KVBits | None
    draft_kv: KVBits | None
    span: Span | None
    revision: str | None
    draft_revision: str | None
    quiet: bool
    ranks: Ranks

    def __post_init__(self) -> None:
        if self.kv and self.ranks.size > 1:
            raise UsageError("--kv-bits needs a single process; leave it out, or start just one")


@dataclass(frozen=True)
class _Found:
    """Where the files of a pair are, and what their configs say; the two fit."""

    target: Path
    raw: dict[str, Any]
    draft: tuple[Path, str] | None = None  # and its name
    config: DraftConfig | None = None


def _find(wanted: _Wanted) -> _Found:
    """Fetch what is not here, and check everything that can be told before it is loaded."""
    folder = find_target(wanted.model, wanted.revision, wanted.quiet)
    pair = pairfile.find(folder)
    if pair is not None:
        pair.check()
        folder = pair.target
    raw = read_config(folder)
    family_of(raw.get("model_type"), wanted.model)
    sharding.check(text_of(raw), wanted.model, wanted.ranks)
    if not wanted.speculate:
        if wanted.span:
            raise UsageError("a draft window without a draft; leave one of them out")
        if wanted.draft_kv:
            raise UsageError("bits of the draft's keys without a draft; leave one of them out")
        return _Found(folder, raw)
    if pair is not None and wanted.draft is None:
        draft = pair.draft, f"{wanted.model}/{pairfile.DRAFT}"
    else:
        draft = find_draft(wanted.model, wanted.draft, wanted.draft_revision, wanted.quiet)
    config = DraftConfig.from_dict(read_config(draft[0]), f"{draft[1]}/config.json")
    check_fit(config, raw, wanted.model, draft[1])
    return _Found(folder, raw, draft, config.with_span(wanted.span) if wanted.span else config)


def _read(wanted: _Wanted) -> tuple[Pair, Original | None]:
    """The pair, by files alone, and what reads its draft as it is stored."""
    found = _find(wanted)
    lm, tokenizer = _load_target(found, wanted)
    target = target_for(lm, found.config.taps if found.config else (), wanted.ranks)
    target = target.with_kv(wanted.kv) if wanted.kv else target
    draft = original = None
    if found.draft is not None and found.config is not None:
        # The config counts rows of the head; only the tokenizer tells padding from tokens.
        vocabulary = max(tokenizer.get_vocab().values()) + 1 if found.config.dflash2 else None
        config = found.config.on_scaled_embeddings(target.embed_scale)
        # On the CPU products of few bits are many times slower.
        dense = mx.default_device().type != mx.gpu
        original = partial(read_draft, found.draft[0], config, vocabulary=vocabulary, dense=dense)
        draft = original(bits=wanted.draft_bits, dtype=wanted.dtype)
        draft = draft.with_kv(wanted.draft_kv) if wanted.draft_kv else draft
        target = target.with_draft_vocabulary(draft.vocabulary)
    known = pairs.find(wanted.model)
    short = known is not None and wanted.model.lower() == known.name.lower()
    pair = Pair(
        target=target,
        draft=draft,
        tokenizer=tokenizer,
        eos_ids=frozenset(tokenizer.eos_token_ids),
        max_context=text_of(found.raw).get("max_position_embeddings") or 8192,
        name=known.name if known is not None and short else wanted.model,
        draft_name=found.draft[1] if found.draft else None,
        kernels=wanted.kernels,
        memory=memory_of(target, draft, found.raw, this_machine()),
    )
    return pair, original


def read_draft(
    folder: Path,
    config: DraftConfig,
    bits: int | None = None,
    dtype: str | None = None,
    vocabulary: int | None = None,
    dense: bool = False,
) -> DFlashDraft:
    """Read a draft's tensors, each by its name.

    Args:
        folder: config.json and safetensors.
        config: the checked config.
        bits: quantise the linear layers to 4 or 8 bits, those anew that have few already.
        dtype: floating type to compute in.
        vocabulary: how many ids the tokenizer knows; rows of the head behind them are padding,
            which DFlash 2 leaves out of its candidates.
        dense: compute what is stored in few bits as what it stands for.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape.
        UnsupportedError: the tensors are quantised in a way that MLX does not know.
    """
    network = draft_for(config, vocabulary)
    raw, source = read_config(folder), str(folder)
    tensors = {_stored(name): tensor for name, tensor in read_tensors(folder).items()}
    quantised = is_quantised(raw, source)
    if quantised:
        quantise_as_stored(network, raw, tensors.keys(), source)
    expected = {name: value.shape for name, value in _parameters(network).items()}
    check_names(tensors, expected, source)
    network.load_weights(list(tensors.items()))
    network.set_dtype(_draft_dtype(network.dtype, dtype))
    if quantised and (dense or bits):
        dequantise(network, network.dtype)
    if bits:
        quantise(network, bits)
    return network.prepare()


def _stored(name: str) -> str:
    """Our name of a stored tensor; codebooks are stored bare, and some exports add a prefix."""
    return name.removeprefix("model.") + (".weight" if name.endswith("_codebook") else "")


def _draft_dtype(stored: mx.Dtype, wanted: str | None) -> mx.Dtype:
    """The draft never runs in float16: features of the target overflow it in the fusion."""
    dtype = _dtype(wanted, stored)
    return mx.bfloat16 if dtype == mx.float16 else dtype


def _dtype(wanted: str | None, stored: mx.Dtype) -> mx.Dtype:
    return DTYPES[wanted] if wanted is not None else compute_dtype(stored)


def compute_dtype(stored: mx.Dtype) -> mx.Dtype:
    """What weights of a floating type are computed in unless told otherwise."""
    # Only float32 goes through a BLAS on the CPU; everything else is many times slower.
    return stored if mx.default_device().type == mx.gpu else mx.float32


def _parameters(module: nn.Module) -> dict[str, mx.array]:
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(module.parameters())))


def _check_options(bits: int | None, draft_bits: int | None, dtype: str | None) -> None:
    for name, value in (("bits", bits), ("draft bits", draft_bits)):
        if value is not None and value not in BITS:
            raise UsageError(f"{name} is {value}, expected 4 or 8")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")


def _load_target(found: _Found, wanted: _Wanted) -> tuple[Any, Any]:
    import mlx_lm
    from mlx_lm.utils import quantize_model

    folder = found.target
    check_target_files(folder, found.raw)
    try:
        lm, tokenizer, config = mlx_lm.load(
            str(folder),
            # Without it the tokenizer warns about long prompts, which `rounds` refuses itself.
            tokenizer_config={"model_max_length": 10**9},
            lazy=True,
            return_config=True,
        )
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(f"{folder} cannot be loaded by mlx-lm: {reason}") from error
    floating = [v for v in _parameters(lm).values() if mx.issubdtype(v.dtype, mx.floating)]
    cast_floating(lm, _dtype(wanted.dtype, floating[0].dtype))
    if wanted.bits:
        if found.raw.get("quantization"):
            raise UsageError(f"{folder} is quantised already; leave out --bits")
        with redirect_stdout(sys.stderr):  # where it reports what it did
            lm, _ = quantize_model(lm, config, GROUP_SIZE, wanted.bits)
    sharding.cut(lm, wanted.model, wanted.ranks)
    mx.eval(lm.parameters())
    lm.eval()
    return lm, tokenizer


def check_target_files(folder: Path, raw: dict[str, Any]) -> None:
    """Check every header of a target, whose tensors stay on disk, and how many layers it claims.

    Raises CheckpointError.
    """
    layers, count = text_of(raw).get("num_hidden_layers"), len(read_tensors(folder))
    if isinstance(layers, int) and layers > count:  # they would all be built before being missed
        raise CheckpointError(f"{folder}: {layers} layers, but only {count} tensors; {AGAIN}")


def cast_floating(lm: Any, dtype: mx.Dtype) -> None:
    """Floating parameters to `dtype`, but for those that mlx-lm keeps in float32."""
    may = lm.cast_predicate if hasattr(lm, "cast_predicate") else lambda _: True
    lm.update(
        tree_map_with_path(
            lambda path, a: (
                a.astype(dtype) if mx.issubdtype(a.dtype, mx.floating) and may(path) else a
            ),
            lm.parameters(),
        )
    )
