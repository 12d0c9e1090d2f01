"""How the usual clients are told of this server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        url: without a path.
        model: as it is called there.
        key: of the server; most clients want one even where it needs none.
    """

    url: str
    model: str
    key: str = "none"


def _openai(at: Address) -> str:
    return f"""\
export OPENAI_BASE_URL={at.url}/v1
export OPENAI_API_KEY={at.key}
"""


def _claude_code(at: Address) -> str:
    return f"""\
export ANTHROPIC_BASE_URL={at.url}
export ANTHROPIC_AUTH_TOKEN={at.key}
export ANTHROPIC_MODEL={at.model}
export ANTHROPIC_DEFAULT_OPUS_MODEL={at.model}
export ANTHROPIC_DEFAULT_SONNET_MODEL={at.model}
export ANTHROPIC_DEFAULT_HAIKU_MODEL={at.model}
export CLAUDE_CODE_MAX_OUTPUT_TOKENS=8192
export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1
"""


def _codex(at: Address) -> str:
    return f"""\
# in ~/.codex/config.toml; then: export DFLASH_API_KEY={at.key}
model = "{at.model}"
model_provider = "dflash"

[model_providers.dflash]
name = "dflash-mlx"
base_url = "{at.url}/v1"
env_key = "DFLASH_API_KEY"
wire_api = "responses"
"""


def _aider(at: Address) -> str:
    return f"""\
export OPENAI_API_BASE={at.url}/v1
export OPENAI_API_KEY={at.key}
aider --model openai/{at.model}
"""


def _continue(at: Address) -> str:
    return f"""\
# in ~/.continue/config.yaml
name: dflash
version: 1.0.0
schema: v1
models:
  - name: {at.model}
    provider: openai
    model: {at.model}
    apiBase: {at.url}/v1
    apiKey: {at.key}
    roles: [chat, edit, apply]
"""


def _cline(at: Address) -> str:
    return f"""\
API Provider:  OpenAI Compatible
Base URL:      {at.url}/v1
API Key:       {at.key}
Model ID:      {at.model}
"""


def _open_webui(at: Address) -> str:
    return f"""\
export ENABLE_OPENAI_API=true
export OPENAI_API_BASE_URLS={at.url}/v1
export OPENAI_API_KEYS={at.key}
"""


CLIENTS: dict[str, Callable[[Address], str]] = {
    "openai": _openai,
    "claude-code": _claude_code,
    "codex": _codex,
    "aider": _aider,
    "continue": _continue,
    "cline": _cline,
    "open-webui": _open_webui,
}
