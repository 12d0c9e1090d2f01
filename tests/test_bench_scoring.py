import json

import pytest

from dflash_mlx.bench.data import answers
from dflash_mlx.bench.data.formats import called
from dflash_mlx.bench.data.latex import same
from dflash_mlx.bench.data.problems import CodeTask, Problem
from dflash_mlx.bench.data.scoring import needs_code, score, scored
from dflash_mlx.bench.data.sets import SETS, find, load_problems, sample_file

JUDGED = [dataset.name for dataset in SETS if dataset.kind in ("answer", "code")]


def solutions(name: str) -> dict[str, str]:
    """The reference solution of every row of a sample, by the problem's id."""
    rows = [json.loads(line) for line in sample_file(find(name)).read_text().splitlines()]
    columns = ("solution", "canonical_solution", "code", "answer")
    found = [next(row[column] for column in columns if column in row) for row in rows]
    return {f"{name}/sample-{n}": text for n, text in enumerate(found, 1)}


@pytest.mark.parametrize("name", JUDGED)
def test_reference_solutions_of_the_samples_are_right_and_others_wrong(name):
    problems = load_problems(name, offline=True)
    reference = solutions(name)
    assert scored(problems)
    assert needs_code(problems) == (find(name).kind == "code")
    for item in problems.items:
        assert score(name, item, reference[item.id], run_code=True) is True
        assert score(name, item, "", run_code=True) is False
    swapped = [reference[item.id] for item in (*problems.items[1:], problems.items[0])]
    verdicts = [
        score(name, item, text, run_code=True)
        for item, text in zip(problems.items, swapped, strict=True)
    ]
    same_answers = len(problems.items) - len({item.answer for item in problems.items})
    assert verdicts.count(True) <= (same_answers if find(name).kind == "answer" else 0)


@pytest.mark.parametrize("name", ["mt-bench", "prose"])
def test_open_questions_are_not_scored(name):
    problems = load_problems(name, offline=True)
    assert not scored(problems)
    assert not needs_code(problems)
    assert score(name, problems.items[0], "anything", run_code=True) is None


def test_code_is_not_run_unless_allowed():
    problem = load_problems("mbpp", offline=True).items[0]
    assert score("mbpp", problem, solutions("mbpp")[problem.id]) is None


NUMBERS = [
    ("so \\boxed{57}.", "57", True),
    ("\\boxed{57 \\text{ rolls}}", "57", True),
    ("\\boxed{57 rolls}", "57", True),
    ("\\boxed{\\$1,234.00}", "1234", True),
    ("first \\boxed{3}, no: \\boxed{\\text{about } 57}", "57", True),
    ("\\boxed{58} is not 57", "57", False),
    ("\\boxed{57 or 58}", "57", False),
    ("work 57\n#### 1,234\nbye 9", "1234", True),
    ("#### 57 rolls", "57", True),
    ("She has **57** rolls.", "57", True),
    ("The total is $57.50 in all.", "57.5", True),
    ("It is 30%.", "30", True),
    ("It fell to -5.", "-5", True),
    ("It fell to \u22125.", "-5", True),
    ("From 9-5 that is", "5", True),
    ("It is 1{,}234", "1234", True),
    ("57 rolls, of which 12 are sold", "57", False),
    ("I do not know.", "57", False),
    ("\\boxed{57", "57", True),  # cut off: it is still the last number
    ("5.7", "57", False),
    ("0.5", ".5", True),
    ("9" * 10_000, "57", False),
    ("\\boxed{" * 20_000, "57", False),
    ("{ \\boxed{57}", "57", True),
    ("\\boxed{\\boxed{57}}", "57", True),
]


@pytest.mark.parametrize(("text", "expected", "right"), NUMBERS)
def test_numbers(text, expected, right):
    problem = Problem("gsm8k/1", ("?",), answer=expected)
    assert score("gsm8k", problem, text) is right
    assert score("mine", problem, text) is right


@pytest.mark.parametrize(
    ("text", "expected", "right"),
    [
        ("\\boxed{\\frac{1}{2}}", "\\frac12", True),
        ("\\boxed{1} then \\boxed{\\frac{\\sqrt{3}}{2}}", "\\frac{\\sqrt3}2", True),
        ("\\boxed {70}", "70", True),
        ("\\fbox{70}", "70", True),
        ("the answer is 70", "70", False),
        ("\\boxed{70", "70", False),
        ("\\boxed{\\{1, 2\\}}", "\\{2,1\\}", True),
        ("\\boxed{}", "70", False),
        ("\\boxed{70} and \\boxed{71", "70", True),
    ],
)
def test_only_what_is_boxed_counts_in_mathematics(text, expected, right):
    for name in ("math500", "aime25"):
        assert score(name, Problem(f"{name}/1", ("?",), answer=expected), text) is right


def test_own_answers_that_are_no_numbers_are_compared_as_boxed():
    problem = Problem("mine/1", ("?",), answer="Paris")
    assert score("mine", problem, "\\boxed{\\text{paris}}") is True
    assert score("mine", problem, "Paris") is False
    assert score("mine", Problem("mine/2", ("?",)), "Paris") is None


SAME = [
    ("\\frac12", "0.5"),
    ("1/2", "\\dfrac{1}{2}"),
    ("-\\frac{3}{4}", "\\frac{-3}{4}"),
    ("1,000", "1000"),
    ("1{,}000", "1000"),
    ("10\\text{ cm}^2", "10"),
    ("10 cm", "10"),
    ("90^\\circ", "90"),
    ("50\\%", "50"),
    ("\\$32{,}000", "32000"),
    ("x=5", "5"),
    ("f(x) = x^2-1", "(x-1)(x+1)"),
    ("x \\in [1,2)", "[1, 2)"),
    ("\\left(3,\\frac{\\pi}{2}\\right)", "(3, \\pi/2)"),
    ("2\\sqrt{3}", "\\sqrt{12}"),
    ("2\\sqrt{2}+1", "1+2\\sqrt2"),
    ("\\sqrt[3]{-8}", "-2"),
    ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt3}"),
    ("3\\frac12", "\\frac72"),
    ("1,-2", "-2, 1"),
    ("6 \\text{ and } 8", "8,6"),
    ("\\{1,2\\}", "\\{2,1\\}"),
    ("(1,2), (3,4)", "(3,4),(1,2)"),
    ("\\text{Evelyn}", "evelyn"),
    ("(\\text{C})", "C"),
    ("4210_{5}", "4210_5"),
    ("2^{10}", "1024"),
    ("x^{-1}", "\\frac1x"),
    ("120\u03c0", "120\\pi"),
    ("(-\\infty, 3)", "(-\\infty,3)"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
    ("5.", "5"),
    ("(1+i)^2", "2i"),
]
DIFFERENT = [
    ("0.33", "\\frac13"),
    ("(2,3)", "[2,3)"),
    ("(2,3)", "(3,2)"),
    ("2,3", "(2,3)"),
    ("(2,3)", "\\sqrt{34}"),
    ("[x]", "(1,2)"),
    ("1,2", "1,2,3"),
    ("1,1,2", "1,2,2"),
    ("cat", "act"),
    ("x", "y"),
    ("3", "-3"),
    ("", "3"),
    ("2x", "2"),
    ("1000000000001", "1000000000002"),
    ("x+1", "x-1"),
    ("\\frac{1}{0}", "1"),
    ("\\pm 2", "2"),
    ("9^{9^{9^9}}", "1"),
    ("(" * 250, "1"),
    ("7 " + "a" * 100_000 + "!", "7"),
    ("{" * 5000, "1"),
    ("\\frac", "1"),
    ("2^", "2"),
]


@pytest.mark.parametrize(("given", "expected"), SAME)
def test_the_same_in_latex(given, expected):
    assert same(given, expected)
    assert same(expected, given)


@pytest.mark.parametrize(("given", "expected"), DIFFERENT)
def test_not_the_same_in_latex(given, expected):
    assert not same(given, expected)
    assert not same(expected, given)


BODY = "    return a + b\n"
TASK = CodeTask("def add(a, b):\n    '''Sum.'''\n", "assert add(1, 2) == 3\n", "add")
FENCED = f"```python\n{TASK.prompt}{BODY}```"
PASSING = {
    "the body": BODY,
    "the body, stripped": BODY.strip(),
    "two lines, stripped": "c = a + b\n    return c",
    "two lines without indentation": "c = a + b\nreturn c",
    "the whole function": TASK.prompt + BODY,
    "in a fence": f"Sure!\n{FENCED}\nThat is it.",
    "in a fence without a label": f"```\n{TASK.prompt}{BODY}```",
    "in a fence that is cut off": FENCED.removesuffix("```"),
    "before an example": f"{FENCED}\nTry:\n```python\nprint(add(1, 2))\n```",
    "after a wrong one": f"```py\ndef add(a, b):\n    pass\n```\nNo:\n{FENCED}",
    "beside another language": f"{FENCED}\n```bash\npython add.py\n```",
    "in a fence that ends on a line of code": FENCED.replace("\n```", "```"),
    "as a lambda": "```python\nadd = lambda a, b: a + b\n```",
    "with a main block": f"{TASK.prompt}{BODY}\nif __name__ == '__main__':\n    input()\n",
}
FAILING = {
    "nothing": "",
    "a wrong body": "    return a - b\n",
    "prose": "I would add the two numbers.",
    "a syntax error": "```python\ndef add(a, b) return\n```",
    "another language": "```bash\nadd 1 2\n```",
    "an early exit": f"{TASK.prompt}{BODY}\nraise SystemExit(0)\n",
}


@pytest.mark.parametrize("answer", PASSING.values(), ids=PASSING)
def test_programs_that_pass(answer):
    assert score("humaneval", Problem("h/1", ("?",), code=TASK), answer, run_code=True) is True


@pytest.mark.parametrize("answer", FAILING.values(), ids=FAILING)
def test_programs_that_fail(answer):
    assert score("humaneval", Problem("h/1", ("?",), code=TASK), answer, run_code=True) is False


def test_what_the_prompt_imports_and_defines_is_there():
    prompt = (
        "from typing import List\n\ndef half(x):\n    return x / 2\n\ndef f(x: List):\n    ''''''\n"
    )
    task = CodeTask(prompt, "assert f([half(4)]) == 1\n", "f")
    answer = "```python\ndef f(x: List) -> int:\n    return half(x[0])\n```"
    assert score("humaneval", Problem("h/1", ("?",), code=task), answer, run_code=True) is True


def test_a_name_that_the_prompt_does_not_say_may_be_any():
    task = CodeTask("", "assert area(2) == 4\n", "area")
    answer = "```python\ndef square_area(s):\n    return s * s\n\ndef main():\n    print('hi')\n```"
    assert score("mbpp", Problem("m/1", ("?",), code=task), answer, run_code=True) is True
    both = answer.replace("def main", "def area(s):\n    return 0\n\ndef main")
    assert score("mbpp", Problem("m/1", ("?",), code=task), both, run_code=True) is False


@pytest.mark.parametrize(
    ("tests", "name"),
    [
        ("assert set(shared((1,), (2,))) == set()", "shared"),
        ("import math\nassert math.isclose(area(2), 4)\nassert area(0) == 0", "area"),
        ("from math import isclose\nassert isclose(area(2), 4)", "area"),
        ("assert first(Pair(1, 2)) == 1\nassert first(None) == 0", "first"),
    ],
)
def test_the_function_that_tests_call(tests, name):
    assert called(tests) == name


def test_definitions_are_found_at_the_top_level_alone():
    assert answers.defines("async def f ( x ):\n    pass", "f")
    assert answers.defines("f: object = 1", "f")
    assert not answers.defines("class A:\n    def f(self):\n        pass", "f")
    assert not answers.defines("f == 1", "f")
    assert not answers.defines("def ff():\n    pass", "f")
