"""Score the bundled tiny model through transformers: questions, all small sums, stories, and whether it stops.

    python tools/check_tiny_model.py --model src/kilotron/assets/tiny

Questions and sums are decoded greedily. The exit status is 0 when at least 90 percent of the answers are right and
every story ends by itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

# (question, a part of the right answer); many are phrased as the training text does not phrase them.
QUESTIONS: tuple[tuple[str, str], ...] = (
    ("What is kilotron?", "inference runtime"),
    ("what is kilotron", "inference runtime"),
    ("Could you tell me what kilotron is?", "runtime"),
    ("Who are you?", "Kilo"),
    ("What is your name?", "Kilo"),
    ("What can you do?", "stories"),
    ("How many parameters do you have?", "four million"),
    ("Are you a human?", "not a person"),
    ("Does kilotron need a GPU?", "does not need a GPU"),
    ("Which checkpoints does kilotron read?", "Megatron"),
    ("Is kilotron open source?", "Apache"),
    ("What is a KV cache?", "already read"),
    ("What is a token?", "piece of text"),
    ("Hello!", "Hello"),
    ("Hi", "Hello"),
    ("How are you today?", "well"),
    ("Good morning!", "Good morning"),
    ("Thank you so much!", "welcome"),
    ("Goodbye!", "Goodbye"),
    ("Good night", "Good night"),
    ("What colour is the sky?", "blue"),
    ("What color is a banana?", "yellow"),
    ("What colour is snow?", "white"),
    ("Can you tell me what colour grass is?", "green"),
    ("What is the color of a strawberry?", "red"),
    ("What do you get if you mix blue and yellow?", "green"),
    ("What is 2 + 2?", "= 4"),
    ("what is 7+5", "= 12"),
    ("What is three plus four?", "= 7"),
    ("What is 20 minus 8?", "= 12"),
    ("How much is 6 times 7?", "= 42"),
    ("Please add 9 and 6.", "= 15"),
    ("What is 12 - 5?", "= 7"),
    ("What is 15 + 15?", "= 30"),
    ("What is 4821 + 1234?", "too big"),
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Japan?", "Tokyo"),
    ("Tell me the capital city of Italy", "Rome"),
    ("What's the capital of Egypt?", "Cairo"),
    ("Capital of Peru?", "Lima"),
    ("What day comes after Monday?", "Tuesday"),
    ("What is the month after June?", "July"),
    ("What season comes before summer?", "spring"),
    ("Name the days of the week.", "Wednesday, Thursday"),
    ("What is the opposite of hot?", "cold"),
    ("What is the opposite of fast?", "slow"),
    ('What\'s the opposite of "up"?', "down"),
    ("What does a dog say?", "Woof"),
    ("What sound does a cow make?", "Moo"),
    ("How many legs does a spider have?", "eight"),
    ("How many legs does a dog have?", "four"),
    ("What is a baby cat called?", "kitten"),
    ("Which is bigger, a mouse or an elephant?", "elephant is bigger"),
    ("Which is bigger, 4 or 9?", "9 is bigger"),
    ("Count to five.", "1, 2, 3, 4, 5."),
    ("Can you count to 10?", "8, 9, 10."),
    ("Count down from 3.", "3, 2, 1."),
    ("Spell cat.", "C-A-T"),
    ("How many days are in a week?", "seven"),
    ("How many minutes are in an hour?", "60"),
    ("What do rabbits eat?", "carrots"),
    ("What is a llama?", "mountains"),
    ("Can penguins fly?", "cannot fly"),
    ("What is the sun?", "star"),
    ("Who won the football cup in 1998?", "do not know"),
    ("Explain quantum field theory.", "do not know"),
    ("What is the capital of Mongolia?", "do not know"),
    ("Write a program that sorts a list.", "do not know"),
    ("Repeat after me: the moon is green", "the moon is green"),
)
# (turns of the user, a part of the last answer)
DIALOGUES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("My name is Clara.", "What is my name?"), "Clara"),
    (("Hello, I am Henry.", "What is 3 + 3?", "Do you remember my name?"), "Henry"),
    (("What colour is the sky?", "And grass?"), "green"),
)
PROMPTS = (
    "Once upon a time",
    "The little fox",
    "In the morning",
    "The capital of France is",
    "Hello, my name is",
    "The future of AI is",
    "Kilotron is",
    "2 + 3 =",
)
REQUESTS = ("Tell me a story about a llama.", "Tell me a joke.", "Write a haiku.")
SUM_LIMIT = 20


class Checker:
    """Runs the model on prompts of text or chat."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer.padding_side = "left"

    @torch.inference_mode()
    def complete(self, prompts: list[str], temperature: float = 0.0, limit: int = 200) -> list[tuple[str, bool]]:
        """The continuation of every prompt, and whether the model ended it by itself."""
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_p": 1.0}
            if temperature
            else {"do_sample": False, "temperature": None, "top_p": None}
        )
        tokens = self.model.generate(**inputs, max_new_tokens=limit, **sampling)[:, inputs["input_ids"].shape[1] :]
        ends = torch.tensor(self.model.generation_config.eos_token_id)
        stopped = torch.isin(tokens, ends).any(dim=1).tolist()
        return list(zip(self.tokenizer.batch_decode(tokens, skip_special_tokens=True), stopped, strict=True))

    def chat_prompt(self, messages: list[dict[str, str]]) -> str:
        """The text that the chat template makes of `messages`."""
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def ask(self, questions: list[str], limit: int = 200) -> list[tuple[str, bool]]:
        """The greedy answer to each question alone."""
        return self.complete([self.chat_prompt([{"role": "user", "content": q}]) for q in questions], limit=limit)

    def converse(self, turns: tuple[str, ...]) -> str:
        """The last answer of a dialogue."""
        messages: list[dict[str, str]] = []
        for turn in turns:
            messages.append({"role": "user", "content": turn})
            messages.append({"role": "assistant", "content": self.complete([self.chat_prompt(messages)])[0][0]})
        return messages[-1]["content"]


def check_questions(checker: Checker) -> tuple[int, int]:
    """How many questions and dialogues are answered right, of how many."""
    right = 0
    for (question, expected), (answer, stopped) in zip(QUESTIONS, checker.ask([q for q, _ in QUESTIONS]), strict=True):
        good = expected in answer and stopped
        right += good
        if not good:
            print(f"  wrong: {question!r} -> {answer!r}")
    for turns, expected in DIALOGUES:
        answer = checker.converse(turns)
        right += expected in answer
        if expected not in answer:
            print(f"  wrong: {turns!r} -> {answer!r}")
    return right, len(QUESTIONS) + len(DIALOGUES)


def check_arithmetic(checker: Checker, sign: str) -> tuple[int, int]:
    """How many of all small sums (or differences) are right, of how many."""
    pairs = [(a, b) for a in range(SUM_LIMIT + 1) for b in range(SUM_LIMIT + 1) if sign == "+" or a >= b]
    answers = checker.ask([f"What is {a} {sign} {b}?" for a, b in pairs], limit=16)
    results = [a + b if sign == "+" else a - b for a, b in pairs]
    return sum(answer.endswith(f"= {result}.") for (answer, _), result in zip(answers, results, strict=True)), len(
        pairs
    )


def check_stories(checker: Checker, count: int) -> tuple[int, int]:
    """How many sampled stories end by themselves, of how many; prints the first three."""
    stories = checker.complete(["Once upon a time"] * count, temperature=0.8, limit=250)
    for text, _ in stories[:3]:
        print(f"  sampled: Once upon a time{text}\n")
    return sum(stopped for _, stopped in stories), count


def main() -> int:
    """Print samples and scores."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("src/kilotron/assets/tiny"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stories", type=int, default=16)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    checker = Checker(arguments.model)
    greedy_stopped = True
    for prompt in PROMPTS:
        [(text, stopped)] = checker.complete([prompt])
        greedy_stopped &= stopped
        print(f"  greedy: {prompt}|{text}\n")
    for request, (answer, stopped) in zip(REQUESTS, checker.ask(list(REQUESTS)), strict=True):
        greedy_stopped &= stopped
        print(f"  chat: {request} -> {answer}\n")
    ended, stories = check_stories(checker, arguments.stories)
    scores = {
        "questions": check_questions(checker),
        "sums": check_arithmetic(checker, "+"),
        "differences": check_arithmetic(checker, "-"),
        "stories that end": (ended, stories),
    }
    for name, (right, total) in scores.items():
        print(f"{name}: {right} of {total} ({right / total:.1%})")
    print(f"greedy texts end by themselves: {'yes' if greedy_stopped else 'no'}")
    good = greedy_stopped and all(right >= 0.9 * total for right, total in scores.values())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
