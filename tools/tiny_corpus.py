"""The training text of the bundled tiny model: an endless, seeded stream of documents.

A document is a list of (text, learned) segments; what the user or the system says is read but not learned. Run this
file to print a few documents:

    python tools/tiny_corpus.py --seed 1 --count 5
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from random import Random

import tiny_chats
import tiny_corpus_tables as tables
import tiny_facts as facts
import tiny_stories
import tiny_talk as talk

END = "<|endoftext|>"
TURN, TURN_END = "<|im_start|>", "<|im_end|>"
PADDING = "<|pad|>"
# ChatML, as most tools know it.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)

Segment = tuple[str, bool]
Document = list[Segment]


def chat_document(messages: list[dict[str, str]]) -> Document:
    """The messages as the chat template writes them; only the assistant's words are learned."""
    document: Document = []
    for message in messages:
        is_answer = message["role"] == "assistant"
        document.append((f"{TURN}{message['role']}\n", False))
        document.append((message["content"] + TURN_END, is_answer))
        document.append(("\n", False))
    return document


def statement(rng: Random) -> str:
    """One plain sentence that states a fact."""
    kind = rng.randrange(9)
    if kind == 0:
        land, city = rng.choice(list(facts.CAPITALS.items()))
        return rng.choice((f"The capital of {land} is {city}.", f"{city} is the capital of {land}."))
    if kind == 1:
        first, second = rng.sample(rng.choice(facts.OPPOSITES), 2)
        return f"The opposite of {first} is {second}."
    if kind == 2:
        return talk.KILOTRON if rng.random() < 0.3 else rng.choice(talk.FUN_FACTS)
    if kind == 3:
        return rng.choice(tables.PROVERBS)
    topic = (tiny_chats.colour, tiny_chats.order, tiny_chats.trivia, tiny_chats.animal, tiny_chats.compare_numbers)[
        kind - 4
    ]
    return topic(rng)[1]


def arithmetic(rng: Random) -> str:
    """A line of small sums, in figures or in words."""
    if rng.random() < 0.2:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        return f"{facts.NUMBERS[a].capitalize()} plus {facts.NUMBERS[b]} is {facts.NUMBERS[a + b]}."
    return " ".join(tiny_chats.sums(rng)[1] for _ in range(rng.choice((1, 1, 1, 2, 4, 8))))


def counting(rng: Random) -> str:
    """Numbers, days or months in a row."""
    start = rng.randint(0, 5)
    numbers = ", ".join(str(n) for n in range(start, rng.randint(start + 4, 20) + 1)) + "."
    return rng.choice(
        (
            numbers,
            ", ".join(facts.DAYS) + ".",
            ", ".join(facts.MONTHS) + ".",
            "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z.",
            " ".join(facts.NUMBERS[start:]) + ".",
        )
    )


def fragment(rng: Random) -> str:
    """A story that begins in the middle, so that any prompt has a way on."""
    hero = tiny_stories.make_child(rng) if rng.random() < 0.4 else tiny_stories.make_animal(rng)
    teller = tiny_stories.Teller(rng, hero)
    teller.time()
    if rng.random() < 0.5:
        teller.say(
            "{the_h} was called {n}.|{the_h} looked out of the window and smiled. Its name was {n}.|"
            "The name of {the_h} was {n}.|"
            "{the_h} lived {home}. {His} name was {n}.|{the_h} was hungry. {His} name was {n}.|"
            "{who_is} was up early.|"
            "In the morning, {n} the {kind} woke up and looked outside.|My friend {n} is {a_kind}.|"
            "There was a knock at the door. It was {n} the {kind}.|"
            "It was a dark night, and {n} the {kind} was alone.|"
            "In the forest, there lived {a_kind} named {n}.|This is the story of {n} the {kind}.|"
            "The sun was shining. {n} the {kind} "
            "was happy.".replace("Its name", "{His} name")
            .replace("{who_is}", "{n} the {kind}")
            .replace("{a_kind}", tiny_stories.article(hero.kind))
        )
    else:
        teller.say(
            "{n} was {a_kind}.|{n} the {kind} lived {home}.|{n} liked {food}.".replace(
                "{a_kind}", tiny_stories.article(hero.kind)
            )
        )
    rng.choice(list(tiny_stories.SKELETONS))(teller)
    return teller.text()


def musing(rng: Random) -> str:
    """A sentence or two on nothing in particular."""
    if rng.random() < 0.7:
        return rng.choice(talk.MUSINGS)
    who = tiny_stories.make_child(rng) if rng.random() < 0.5 else tiny_stories.make_animal(rng)
    kind = tiny_stories.article(who.kind)
    start = rng.choice(("Hello, my name is {n}.", "My name is {n}.", "Hi, I am {n}.", "Hello! My name is {n}."))
    return f"{start} I am {kind}, and I live {who.home}. I like {who.food} and {who.talent}.".format(n=who.name)


def plain(rng: Random) -> str:
    """A document that is no chat."""
    dice = rng.random()
    if dice < 0.55:
        return tiny_stories.story(rng)
    if dice < 0.70:
        return fragment(rng)
    if dice < 0.83:
        return " ".join(statement(rng) for _ in range(rng.choice((1, 1, 1, 1, 3))))
    if dice < 0.92:
        return arithmetic(rng)
    if dice < 0.94:
        return counting(rng)
    if dice < 0.97:
        return musing(rng)
    if dice < 0.985:
        question, answer = tiny_chats.single(rng)
        return f"Question: {question}\nAnswer: {answer}"
    return rng.choice((*tables.RHYMES, *talk.HAIKUS, *talk.POEMS, *talk.JOKES))


def drill(rng: Random) -> Document:
    """What is learned slowly: sums above all, names, counting, repeating, and what it says about itself."""
    if rng.random() < 0.4:
        sums = [tiny_chats.sums(rng)[1] for _ in range(rng.choice((1, 1, 4, 8)))]
        return [(" ".join(line for line in sums if "=" in line) or "2 + 2 = 4.", True)]
    if rng.random() < 0.15:
        return exchange_document(tiny_chats.with_memory(rng))
    topics = (tiny_chats.sums, tiny_chats.counting, tiny_chats.repeat, tiny_chats.about, tiny_chats.animal)
    topic = rng.choices(topics, (60, 8, 12, 10, 10))[0]
    return exchange_document([topic(rng) for _ in range(rng.randint(1, 3))])


def exchange_document(turns: list[tiny_chats.Exchange]) -> Document:
    """A chat of these exchanges, without a system message."""
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return chat_document(messages)


def documents(seed: int, drills: float = 0.0) -> Iterator[Document]:
    """Documents without end; the same seed gives the same ones. `drills` is the share of exercises among them."""
    rng = Random(seed)
    while True:
        if drills and rng.random() < drills:
            yield drill(rng)
        elif rng.random() < 0.62:
            yield chat_document(tiny_chats.conversation(rng))
        else:
            yield [(plain(rng), True)]


def main() -> None:
    """Print some documents."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10)
    arguments = parser.parse_args()
    for _, document in zip(range(arguments.count), documents(arguments.seed), strict=False):
        print("".join(text for text, _ in document), end=f"{END}\n\n")


if __name__ == "__main__":
    main()
