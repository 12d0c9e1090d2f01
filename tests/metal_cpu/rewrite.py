"""Turns `threadgroup` variables into objects shared by the lanes of a threadgroup.

In Metal `threadgroup float tile[64];` inside a function is one object per threadgroup.  The CPU
has no such storage class, so every such *declaration* becomes a reference into memory that the
runtime owns:

    threadgroup float tile[64];   ->   MTL_TG(MTL_T(float), tile, MTL_T([64]));

`threadgroup` as a qualifier of a pointer or reference, of a parameter or of a member function is
left alone; the shim defines it away (in an attribute, `[[threadgroup(0)]]`, it is renamed).  A form
that is not understood raises RewriteError: a threadgroup variable must never become private to a
lane without a word.

Only declarations at the start of a statement are rewritten, lines are kept (so that messages
name the right ones), comments, strings and preprocessor lines are passed through.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/)
      | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<number>\.?\d(?:[eEpP][+-]|[\w.'])*)
      | (?P<word>[A-Za-z_]\w*)
      | (?P<mark>\[\[|::|->|<<=|>>=|<=|>=|==|!=|&&|\|\||.)""",
    re.VERBOSE | re.DOTALL,
)
DIRECTIVE = re.compile(r"^[ \t]*\#(?:[^\n\\]|\\\n|\\.)*", re.MULTILINE)
IN_MACRO = re.compile(r"\bthreadgroup(\s+[\w:<>, ]+\s\w+\s*(\[[^;]*)?;|\s*$)")
ALIGNAS = re.compile(r"(\bthreadgroup\s+)alignas\s*\(\s*(?:16|8|4|2|1)\s*\)\s*")
OPEN, CLOSE = {"(": ")", "[": "]", "{": "}", "[[": "]"}, {")", "]", "}"}


class RewriteError(ValueError):
    """A use of `threadgroup` that the emulator does not understand; names the line."""


@dataclass
class Token:
    text: str
    kind: str
    line: int


def rewrite(text: str, where: str = "kernel") -> str:
    """`text` with its threadgroup variables replaced, on the same lines.

    Raises RewriteError for a threadgroup variable with an initialiser, in a macro, or written in
    a way that is not understood.
    """
    # The runtime aligns to 16 bytes at least.
    tokens = list(_tokens(ALIGNAS.sub(r"\1", text), where))
    out: list[str] = []
    i = 0
    while i < len(tokens):
        if tokens[i].text == "threadgroup" and _starts_statement(tokens, i, where):
            end = _statement_end(tokens, i, where)
            if end is not None:
                out.append(_declare(tokens[i + 1 : end], where, tokens[i].line))
                i = end + 1
                continue
        in_attribute = tokens[i].text == "threadgroup" and out[-1:] == ["[["]
        out.append("mtl_slot" if in_attribute else tokens[i].text)
        i += 1
    return "".join(out)


def _tokens(text: str, where: str) -> Iterator[Token]:
    at, line = 0, 1
    for match in DIRECTIVE.finditer(text):
        for token in _plain(text[at : match.start()], line):
            yield token
            line = token.line + token.text.count("\n")
        directive = match.group()
        if IN_MACRO.search(directive.replace("\\\n", " ")):
            raise RewriteError(f"{where}:{line}: a threadgroup variable inside a macro")
        yield Token(directive, "space", line)
        line += directive.count("\n")
        at = match.end()
    yield from _plain(text[at:], line)


def _plain(text: str, line: int) -> Iterator[Token]:
    for match in TOKEN.finditer(text):
        yield Token(match.group(), match.lastgroup or "mark", line)
        line += match.group().count("\n")


def _before(tokens: list[Token], i: int) -> int:
    """Index of the token before i that is no space or comment, or -1."""
    i -= 1
    while i >= 0 and tokens[i].kind == "space":
        i -= 1
    return i


def _starts_statement(tokens: list[Token], i: int, where: str) -> bool:
    at = _before(tokens, i)
    if at < 0 or tokens[at].text in {";", "{", "}", ":"}:
        return True
    line = tokens[i].line
    if tokens[at].text in {"static", "const", ")"} and _statement_end(tokens, i, where, False):
        raise RewriteError(f"{where}:{line}: write `threadgroup` first in this declaration")
    return False


def _statement_end(tokens: list[Token], start: int, where: str, sure: bool = True) -> int | None:
    """Index of the `;` that ends a variable's declaration, or None where this is no variable.

    A `*` or `&` outside brackets makes it a pointer or reference, `(` outside brackets a function.
    """
    depth = angle = 0
    for i in range(start + 1, len(tokens)):
        text = tokens[i].text
        if tokens[i].kind == "space":
            continue
        if text in OPEN:
            if depth == 0 and angle == 0 and (text == "(" or (text == "{" and not sure)):
                if sure and tokens[i + 1].text not in {"*", "&"}:
                    raise RewriteError(f"{where}:{tokens[i].line}: brackets in a declaration")
                return None
            if text == "{" and depth == 0:
                raise RewriteError(f"{where}:{tokens[i].line}: threadgroup variable with a value")
            depth += 2 if text == "[[" else 1
        elif text in CLOSE:
            if depth == 0:
                return None
            depth -= 1
        elif depth == 0 and text in "<>":
            angle += 1 if text == "<" else -1
        elif depth == 0 and angle == 0:
            if text in {"*", "&", "&&"} or (text in {",", ":"} and not sure):
                return None
            if text == ";":
                return i
            if text == "=":
                raise RewriteError(f"{where}:{tokens[i].line}: threadgroup variable with a value")
    raise RewriteError(f"{where}:{tokens[start].line}: threadgroup declaration without an end")


def _declare(tokens: list[Token], where: str, line: int) -> str:
    """`float a[4], b` -> one MTL_TG(type, name, shape) for each, with its line ends."""
    first, *others = _split(tokens)
    words = [i for i, t in enumerate(first) if t.kind == "word"]
    shape = next((i for i, t in enumerate(first) if t.text in {"[", "[["}), len(first))
    names = [i for i in words if i < shape and not _inside_angles(first, i)]
    if len(names) < 2:
        raise RewriteError(f"{where}:{line}: cannot read this threadgroup declaration")
    kind = "".join(t.text for t in first[: names[-1]]).strip()
    text = _one(kind, first[names[-1] :], where)
    for other in others:
        text += _one(re.sub(r"\s+", " ", kind), other, where)
    return text


def _one(kind: str, declarator: list[Token], where: str) -> str:
    body = [t for t in declarator if t.kind != "space"]
    if not body or body[0].kind != "word" or (len(body) > 1 and body[1].text != "["):
        raise RewriteError(f"{where}:{declarator[0].line}: cannot read this threadgroup variable")
    shape = "".join(t.text for t in declarator[declarator.index(body[0]) + 1 :])
    lead = "".join(t.text for t in declarator[: declarator.index(body[0])])
    return f"{lead}MTL_TG(MTL_T({kind}), {body[0].text}, MTL_T({shape.rstrip()}));"


def _split(tokens: list[Token]) -> list[list[Token]]:
    parts: list[list[Token]] = [[]]
    depth = angle = 0
    for token in tokens:
        if token.text in OPEN:
            depth += 2 if token.text == "[[" else 1
        elif token.text in CLOSE:
            depth -= 1
        elif depth == 0 and token.text in {"<", ">"}:
            angle += 1 if token.text == "<" else -1
        if token.text == "," and depth == 0 and angle == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _inside_angles(tokens: list[Token], i: int) -> bool:
    before = [t.text for t in tokens[:i]]
    return before.count("<") > before.count(">")
