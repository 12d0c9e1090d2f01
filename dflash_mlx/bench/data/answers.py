"""What of a model's text is its answer."""

from __future__ import annotations

import re
import warnings
from fractions import Fraction

from . import latex

BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
NUMBER = re.compile(r"(?:(?<![\w.)])[-\u2212])?\$?(\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(\.\d+)?")
ONE_NUMBER = re.compile(r"(?=.*\d)-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")
FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL | re.MULTILINE)
LONGEST = 1000  # digits of a number that is one
PYTHON = ("", "python", "py", "python3")
DEFINITION = re.compile(r"^(?:async[ \t]+)?def[ \t]+(\w+)", re.MULTILINE)


def boxed(text: str) -> str | None:
    r"""What is in the last `\boxed{}`, with balanced braces; None where there is none.

    One that the end of the text cuts off does not count.
    """
    last: tuple[int, int] | None = None
    opened: list[int | None] = []  # where each box starts that is open; None for other braces
    for match in BRACE.finditer(text):
        if match[0] == "}":
            start = opened.pop() if opened else None
            if start is not None:
                last = max(last or (0, 0), (start, match.start()))
        elif match[0][-1] == "{" and match[0] != r"\{":
            opened.append(match.end() if match[0] != "{" else None)
    return text[slice(*last)].strip() if last else None


def numbers(text: str) -> list[Fraction]:
    """Every number in a text, without separators of thousands, currency and percent signs."""
    text = text.replace("{,}", ",").replace(r",\!", ",").replace(r"\$", "$")
    found = []
    for match in NUMBER.finditer(text):
        if 0 < len((match[1] or "") + (match[2] or "")) <= LONGEST:
            value = Fraction((match[1] or "0").replace(",", "") + (match[2] or ""))
            found.append(-value if match[0][0] in "-\u2212" else value)
    return found


def is_number(expected: str) -> bool:
    """Whether a right answer is one number."""
    return ONE_NUMBER.fullmatch(expected.strip()) is not None


def right_number(text: str, expected: str) -> bool:
    r"""Whether a text comes to a number: the last `\boxed{}`, else what follows `####`, else the
    last number there is."""
    wanted = numbers(expected)[-1]
    if (inside := boxed(text)) is not None:
        alone = numbers(inside)
        return latex.same(inside, expected) or (len(alone) == 1 and alone[0] == wanted)
    marked = text.rpartition("####")[2].strip().partition("\n")[0] if "####" in text else text
    return numbers(marked)[-1:] == [wanted]


def right_expression(text: str, expected: str) -> bool:
    r"""Whether the last `\boxed{}` of a text is the same as `expected`."""
    inside = boxed(text)
    return inside is not None and latex.same(inside, expected)


def code(text: str, entry_point: str) -> str:
    """The Python of an answer.

    Of the fences that are Python or unlabelled: the last that defines the function, else the last
    that defines any, else the last; without a fence the whole text.
    """
    blocks = [body for label, body in FENCE.findall(text) if label.lower() in PYTHON]
    wanted = [block for block in blocks if defines(block, entry_point)]
    others = [block for block in blocks if DEFINITION.search(block)]
    return next((group[-1] for group in (wanted, others, blocks) if group), text)


def defines(source: str, name: str) -> bool:
    """Whether a source gives a value to a name at its top level."""
    pattern = rf"^(?:async[ \t]+)?(?:def|class)[ \t]+{name}\b|^{name}[ \t]*(?::[^=\n]+)?=[^=]"
    return re.search(pattern, source, re.MULTILINE) is not None


def last_function(source: str) -> str | None:
    """The last function at the top level that is no main and no test."""
    names = DEFINITION.findall(source)
    return next((n for n in reversed(names) if n != "main" and not n.startswith("test")), None)


def continued(prompt: str, answer: str) -> str:
    """A prompt that ends inside a function, with a body after it that may have lost indentation."""
    lines = answer.strip("\n")
    if lines[:1].isspace():
        return prompt + lines
    # The first line alone has lost it where the answer was stripped.
    options = [f"    {lines}", "\n".join(f"    {line}" for line in lines.split("\n"))]
    return next((prompt + body for body in options if _compiles(prompt + body)), prompt + lines)


def _compiles(source: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(source, "answer", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
