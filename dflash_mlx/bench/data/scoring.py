"""Whether an answer is right."""

from __future__ import annotations

from . import answers
from .problems import CodeTask, Problem, Problems
from .sandbox import run_program

BOXED = ("math500", "aime25")  # an answer counts only where the prompt asks to put it


def scored(problems: Problems) -> bool:
    """Whether answers to any of them can be scored at all."""
    return any(item.answer is not None or item.code for item in problems.items)


def needs_code(problems: Problems) -> bool:
    """Whether scoring runs code that the model wrote."""
    return any(item.code for item in problems.items)


def score(dataset: str, problem: Problem, answer: str, *, run_code: bool = False) -> bool | None:
    r"""Whether an answer is right; None where that cannot be said.

    Args:
        dataset: math500 and aime25 count what is in `\boxed{}` alone; elsewhere a right answer that
            is a number may also follow `####` or be the last number of the text.
        answer: the text of the last turn, without thinking.
        run_code: run an answer that is a program, contained as `sandbox.py` says. Without it
            problems with tests are not scored.

    Raises:
        UnsupportedError: no process could be started to run it in.
    """
    if problem.code:
        return passes(problem.code, answer) if run_code else None
    if problem.answer is None:
        return None
    if dataset not in BOXED and answers.is_number(problem.answer):
        return answers.right_number(answer, problem.answer)
    return answers.right_expression(answer, problem.answer)


def passes(task: CodeTask, answer: str) -> bool:
    """Whether the program in an answer passes its tests.

    Where the prompt gives no name, as in mbpp, the last function of an answer stands for the one
    that the tests call.
    """
    code = answers.code(answer, task.entry_point)
    tests = task.tests
    if answers.defines(code, task.entry_point):
        code = f"{task.prompt}\n{code}" if task.prompt else code
    elif task.prompt:
        code = answers.continued(task.prompt, code)
    elif name := answers.last_function(code):
        tests = f"{task.entry_point} = {name}\n{tests}"
    return run_program(code, tests=tests).passed
