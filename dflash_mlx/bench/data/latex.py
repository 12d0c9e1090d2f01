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
    given, expected = normal(given), normal(expected)
    if _text(given) == _text(expected):
        return True
    if max(len(given), len(expected)) > LONGEST:
        return False
    if _is_group(given) or _is_group(expected):
        return _same_groups(given, expected)
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


def _is_group(text: str) -> bool:
    return len(_parts(text)) > 1 or text[:1] == "[" or text[:2] == r"\{" or _is_tuple(text)


def _is_tuple(text: str) -> bool:
    return text[:1] in "([" and text[-1:] in ")]" and len(_parts(text[1:-1])) > 1


def _same_groups(given: str, expected: str) -> bool:
    """Brackets have to agree; what stands in none or in braces may be in any order."""
    if _is_tuple(expected):
        left, right = _parts(given[1:-1]), _parts(expected[1:-1])
        brackets = given[:1] + given[-1:] == expected[:1] + expected[-1:]
        return brackets and len(left) == len(right) and all(map(same, left, right))
    left, right = _parts(_unbraced(given)), _parts(_unbraced(expected))
    if len(left) != len(right):
        return False
    for part in left:
        found = next((other for other in right if same(part, other)), None)
        if found is None:
            return False
        right.remove(found)
    return True


def _unbraced(text: str) -> str:
    return text[2:-2] if text[:2] == r"\{" and text[-2:] == r"\}" else text


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
