r"""Whether two answers written in LaTeX are the same.

Both are freed of what does not matter (`\left`, spacing, units, `x =`) and compared as text; where
that differs, as tuples, intervals or lists, part by part; and where that differs, by the value of
the expression. So `x^2-1` and `(x-1)(x+1)` are the same, and so are 0.5 and `\frac12`, but 0.33 is
not a third.

What it does not decide, and calls different unless the text is the same: logarithms, trigonometry,
factorials, `\pm`, matrices, unions of intervals, inequalities, and anything over 300 characters.
"""

from __future__ import annotations

import re

from .expression import equal

LONGEST = 300  # characters

REPLACED = (
    (r"\\text\s*\{\s*(or|and)\s*\}", ","),
    (r"(?<=[\d}\])])\s*\\(?:text|mathrm|mbox)\s*\{[^{}]*\}(\^\{?\d\}?)?", ""),  # a unit
    (r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r"\1"),
    (r"\\(?:left|right|displaystyle|bigl?|bigr|Bigl?|Bigr)(?![a-zA-Z])", ""),
    (r",\\!|\{,\}", ""),
    (r"(?<!\\)\\[!,;:> ]|~|\\quad(?![a-zA-Z])", " "),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree|\\%|%|\\\$|\$|€|£", ""),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\(?:cdot|times)(?![a-zA-Z])|[\u00d7\u00b7]", "*"),
    (r"\\div(?![a-zA-Z])", "/"),
    (r"[\u2212\u2013]", "-"),
    (r"π", r"\\pi "),
    (r"√", r"\\sqrt"),
)


def same(given: str, expected: str) -> bool:
    """Whether two answers are the same, as far as this module decides."""
    if max(len(given), len(expected)) > LONGEST:
        return given == expected
    given, expected = normal(given), normal(expected)
    if _text(given) == _text(expected):
        return True
    one, other = _group(given), _group(expected)
    if one and other:
        return _same_groups(one, other)
    if one or other:
        return False
    return equal(given, expected)


def normal(text: str) -> str:
    """An answer without what does not change its meaning."""
    for pattern, replacement in REPLACED:
        text = re.sub(pattern, replacement, text)
    text = text.strip().rstrip(".").strip()
    text = re.sub(r"^[a-zA-Z](?:\([a-zA-Z]\))?\s*(?:=|\\in(?![a-zA-Z]))\s*", "", text)
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        return text.replace(",", "")
    return re.sub(r"^(-?\d+(?:\.\d+)?)\s+[a-zA-Z]{2,}[a-zA-Z ]*$", r"\1", text)


def _text(text: str) -> str:
    bare = re.sub(r"\s+", "", text)
    bare = re.sub(r"([_^])\{(\w)\}", r"\1\2", bare)
    bare = re.sub(r"^\((\w)\)$", r"\1", bare)  # the letter of a choice
    return bare.casefold() if len(bare) > 1 and bare.isalpha() else bare


def _group(text: str) -> tuple[str, list[str]] | None:
    """The brackets and the parts of a tuple or an interval; of a set or a list, whose parts may be
    in any order, no brackets; None for anything else."""
    parts = _parts(text)
    if len(parts) > 1:
        return "", parts
    if text[:2] == r"\{" and text[-2:] == r"\}":
        return "", _parts(text[2:-2])
    parts = _parts(text[1:-1])
    wrapped = text[:1] in ("(", "[") and text[-1:] in (")", "]")
    return (text[0] + text[-1], parts) if wrapped and len(parts) > 1 else None


def _same_groups(one: tuple[str, list[str]], other: tuple[str, list[str]]) -> bool:
    if one[0] != other[0] or len(one[1]) != len(other[1]):
        return False
    if one[0]:
        return all(map(same, one[1], other[1]))
    left = list(other[1])
    for part in one[1]:
        found = next((place for place, rest in enumerate(left) if same(part, rest)), None)
        if found is None:
            return False
        del left[found]
    return True


def _parts(text: str) -> list[str]:
    """What stands between the commas that are in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
