"""Conversations for the bundled tiny model: questions in many phrasings, answers that keep to what it knows.

An exchange is a (user text, assistant text) pair. `conversation` strings one to three of them together, now and then
under a system message, and sometimes the later turns need the earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import tiny_corpus_tables as tables
import tiny_facts as facts
import tiny_stories
import tiny_talk as talk

Exchange = tuple[str, str]

SYSTEMS = (
    "You are a helpful assistant.",
    "You are Kilo, a small and friendly assistant.",
    "You are a friendly chatbot.",
    "You are a helpful, honest assistant. Answer briefly.",
    "Be kind and brief.",
    "You are kilotron's tiny model.",
    "Answer the question of the user.",
    "You are an AI assistant.",
    "Be concise.",
    "Answer in English.",
)
PIRATE_SYSTEMS = ("You are a pirate.", "Talk like a pirate.", "Answer like a pirate.", "You are a friendly pirate.")


def choose(rng: Random, options: str) -> str:
    """One of the alternatives in `options`."""
    return rng.choice(options.split("|"))


def about(rng: Random) -> Exchange:
    """What kilotron and the model itself are; the first question is the one people ask most."""
    questions, answer = rng.choice(talk.ABOUT[:4] if rng.random() < 0.4 else talk.ABOUT)
    return choose(rng, questions), answer


def small_talk(rng: Random) -> Exchange:
    """Greetings, thanks and goodbyes."""
    questions, answers = rng.choice(talk.SMALL_TALK[:1] if rng.random() < 0.15 else talk.SMALL_TALK)
    return choose(rng, questions), choose(rng, answers)


def trivia(rng: Random) -> Exchange:
    """Single facts."""
    questions, answer = rng.choice(facts.TRIVIA)
    return choose(rng, questions), answer


def colour(rng: Random) -> Exchange:
    """The colour of a thing, or of a mixture."""
    if rng.random() < 0.2:
        first, second, mixed = rng.choice(facts.MIXTURES)
        first, second = rng.sample((first, second), 2)
        question = choose(
            rng,
            "What do you get if you mix {a} and {b}?|What colour do {a} and {b} make?|"
            "Mix {a} and {b}.|"
            "What is {a} mixed with {b}?|What color do {a} and {b} make?",
        )
        return question.format(a=first, b=second), f"{first.capitalize()} and {second} make {mixed}."
    thing, shade = rng.choice(list(facts.COLOURS.items()))
    question = choose(
        rng,
        "What colour is {x}?|What color is {x}?|Which colour is {x}?|Tell me the colour of {x}.|"
        "What is the colour of {x}?|What is the color of {x}?|Do you know what colour {x} is?|"
        "What color does {x} have?|The colour of {x}?|What's the color of {x}?",
    )
    return question.format(x=thing), f"{tiny_stories.capital(thing)} is {shade}."


def sums(rng: Random, pair: tuple[int, int] | None = None) -> Exchange:
    """A small sum, difference or product. Bigger ones are refused politely."""
    kind = rng.random()
    if kind < 0.05 and pair is None:
        a, b = rng.randint(41, 9999), rng.randint(21, 9999)
        return f"What is {a} {rng.choice('+-*')} {b}?", "Those numbers are too big for me. I only know small sums."
    a, b = pair or (rng.randint(0, 20), rng.randint(0, 20))
    if kind < 0.6 or pair:
        sign, words, result = (
            "+",
            "What is {a} plus {b}?|{a} plus {b}?|Add {a} and {b}.|What is the sum of {a} and {b}?",
            a + b,
        )
    elif kind < 0.85:
        a, b = max(a, b), min(a, b)
        sign, words, result = (
            "-",
            "What is {a} minus {b}?|{a} minus {b}?|Subtract {b} from {a}.|Take {b} from {a}.",
            a - b,
        )
    else:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        sign, words, result = (
            "*",
            "What is {a} times {b}?|{a} times {b}?|Multiply {a} by {b}.|Multiply {a} and {b}.",
            a * b,
        )
    signed = (
        "What is {a} {s} {b}?|{a} {s} {b}|{a} {s} {b} = ?|{a} {s} {b}?|Compute {a} {s} {b}.|How much is {a} {s} {b}?|"
        "What's {a}{s}{b}?|{a}{s}{b}|{a}{s}{b}=|Can you calculate {a} {s} {b}?|Calculate {a} {s} {b}|What is {a}{s}{b}?"
    )
    if sign != "+" or rng.random() < 0.9:
        question = choose(rng, words if rng.random() < 0.4 else signed)
    else:
        question = "I have {a} apples and get {b} more. How many do I have?"
    spelled = question in words.split("|") and rng.random() < 0.4
    shown = (facts.NUMBERS[a], facts.NUMBERS[b]) if spelled else (a, b)
    return tiny_stories.capital(question.format(a=shown[0], b=shown[1], s=sign)), f"{a} {sign} {b} = {result}."


def compare_numbers(rng: Random) -> Exchange:
    """What comes after, and which is bigger."""
    a = rng.randint(0, 19)
    if rng.random() < 0.5:
        question = choose(rng, "What comes after {a}?|Which number comes after {a}?|What number follows {a}?")
        return question.format(a=a), f"After {a} comes {a + 1}."
    b = rng.choice([n for n in range(21) if n != a])
    question = choose(rng, "Which is bigger, {a} or {b}?|What is bigger, {a} or {b}?|Is {a} or {b} bigger?")
    return question.format(a=a, b=b), f"{max(a, b)} is bigger than {min(a, b)}."


def counting(rng: Random) -> Exchange:
    """Counting up or down."""
    last = rng.choice((3, 5, 5, 10, 10, 10, 12, 15, 20, rng.randint(2, 20)))
    if rng.random() < 0.25:
        question = choose(rng, "Count down from {n}.|Count backwards from {n}.|Count from {n} to 1.")
        return question.format(n=last), ", ".join(str(n) for n in range(last, 0, -1)) + "."
    question = choose(
        rng, "Count to {n}.|Can you count to {n}?|Please count to {n}|Count from 1 to {n}.|Count up to {n}"
    )
    shown = facts.NUMBERS[last] if rng.random() < 0.3 else last
    return question.format(n=shown), ", ".join(str(n) for n in range(1, last + 1)) + "."


def order(rng: Random) -> Exchange:
    """Days, months and seasons in order."""
    names, what = rng.choice(((facts.DAYS, "day"), (facts.MONTHS, "month"), (facts.SEASONS, "season")))
    here = rng.randrange(len(names))
    if rng.random() < 0.55:
        question = choose(
            rng,
            "What comes after {x}?|What {w} comes after {x}?|Which {w} comes after {x}?|"
            "What is the {w} after {x}?|"
            "Which {w} follows {x}?",
        )
        return question.format(x=names[here], w=what), f"After {names[here]} comes {names[(here + 1) % len(names)]}."
    question = choose(
        rng, "What comes before {x}?|What {w} comes before {x}?|Which {w} comes before {x}?|What is the {w} before {x}?"
    )
    return question.format(x=names[here], w=what), f"Before {names[here]} comes {names[here - 1]}."


def animal(rng: Random) -> Exchange:
    """Sounds, legs, young ones and food of animals, and who is bigger."""
    kind = rng.randrange(5)
    if kind == 0:
        who, sound = rng.choice(list(facts.SOUNDS.items()))
        question = choose(
            rng, "What does {x} say?|What sound does {x} make?|What noise does {x} make?|How does {x} sound?"
        )
        return question.format(
            x=tiny_stories.article(who)
        ), f'{tiny_stories.capital(tiny_stories.article(who))} says "{sound}!"'
    if kind == 1:
        who, legs = rng.choice(list(facts.LEGS.items()))
        shown = tiny_stories.article(who)
        question = choose(
            rng, "How many legs does {x} have?|How many legs has {x}?|How many legs are on {x}?|Number of legs of {x}?"
        )
        count = "no" if legs == 0 else facts.NUMBERS[legs]
        return question.format(x=shown), f"{tiny_stories.capital(shown)} has {count} legs."
    if kind == 2:
        who, baby = rng.choice(list(facts.YOUNG.items()))
        question = choose(
            rng,
            "What is a baby {x} called?|What do you call a baby {x}?|What is a young {x} called?|"
            "What is the name of a baby {x}?",
        )
        return question.format(x=who), f"A young {who} is called {tiny_stories.article(baby)}."
    if kind == 3:
        who, food = rng.choice(list(facts.FOOD.items()))
        return choose(rng, "What do {x} eat?|What do {x} like to eat?|What is the food of {x}?").format(
            x=who
        ), f"{who.capitalize()} eat {food}."
    small, big = sorted(rng.sample(range(len(facts.BIGGER)), 2))
    names = [tiny_stories.article(facts.BIGGER[i]) for i in (small, big)]
    first, second = rng.sample(names, 2)
    if rng.random() < 0.6:
        question = choose(rng, "Which is bigger, {x} or {y}?|What is bigger, {x} or {y}?|Who is bigger, {x} or {y}?")
        return question.format(x=first, y=second), f"{tiny_stories.capital(names[1])} is bigger than {names[0]}."
    yes = first == names[1]
    answer = f"{'Yes' if yes else 'No'}, {names[1]} is bigger than {names[0]}."
    return f"Is {first} bigger than {second}?", answer


def capital_city(rng: Random) -> Exchange:
    """Capitals of countries."""
    land, city = rng.choice(list(facts.CAPITALS.items()))
    if rng.random() < 0.15:
        return choose(
            rng, "Which country has the capital {c}?|{c} is the capital of which country?|Where is {c}?"
        ).format(c=city), (f"{city} is the capital of {land}.")
    question = choose(
        rng,
        "What is the capital of {x}?|What's the capital of {x}?|Capital of {x}?|"
        "Tell me the capital of {x}.|"
        "Which city is the capital of {x}?|Name the capital of {x}.|"
        "What is the capital city of {x}?|"
        "Do you know the capital of {x}?",
    )
    return question.format(x=land), f"The capital of {land} is {city}."


def opposite(rng: Random) -> Exchange:
    """Opposites, in both directions."""
    first, second = rng.sample(rng.choice(facts.OPPOSITES), 2)
    question = choose(
        rng,
        "What is the opposite of {x}?|What's the opposite of {x}?|The opposite of {x}?|"
        "Opposite of {x}|"
        'Tell me the opposite of {x}.|What is the opposite of "{x}"?',
    )
    return question.format(x=first), f"The opposite of {first} is {second}."


def spelling(rng: Random) -> Exchange:
    """Spelling of short words."""
    word = rng.choice(facts.SPELLING)
    question = choose(rng, 'Spell {x}.|How do you spell {x}?|Can you spell {x}?|Spell the word {x}.|Spell "{x}".')
    return question.format(x=word), "-".join(word.upper()) + "."


def performance(rng: Random) -> Exchange:
    """Jokes, poems, facts and riddles."""
    questions, answers = rng.choice(
        (
            (
                "Tell me a joke.|Tell me a joke|Do you know a joke?|Make me laugh.|Say something funny.|"
                "A joke, please.|"
                "Can you tell a joke?|"
                "Tell me something funny",
                talk.JOKES,
            ),
            ("Tell me a joke.|Tell me another joke.|Another joke, please.|Joke!", talk.JOKES),
            ("Write a haiku.|Write me a haiku|Can you write a haiku?|A haiku, please.|Tell me a haiku.", talk.HAIKUS),
            (
                "Write a poem.|Tell me a poem.|Can you write a poem?|A poem, please.|Write me a short poem|"
                "Write a short poem.",
                talk.POEMS,
            ),
            (
                "Tell me a fun fact.|Tell me something interesting.|Do you know a fun fact?|A fun fact, please.|"
                "Teach me something.",
                talk.FUN_FACTS,
            ),
            ("Tell me a riddle.|Do you know a riddle?|A riddle, please.|Ask me a riddle.", talk.RIDDLES),
            (
                "Tell me a proverb.|Do you know a proverb?|Say something wise.|Give me some advice.",
                tables.PROVERBS[:-5],
            ),
            ("Say a nursery rhyme.|Do you know a nursery rhyme?|Tell me a nursery rhyme.", tables.RHYMES),
        )
    )
    return choose(rng, questions), rng.choice(answers)


def tell_story(rng: Random) -> Exchange:
    """A story on request, about what was asked for."""
    frame = choose(
        rng,
        "Tell me a story about {x}.|Tell me a story about {x}|Can you tell me a story about {x}?|"
        "A story about {x}, please.|"
        "Write a story about {x}.|I want a story about {x}.|Tell me a short story about {x}.|"
        "Write a short story about {x}.|"
        "Please tell me a story about {x}.|Story about {x}",
    )
    kind = rng.random()
    if kind < 0.25:
        question = choose(
            rng,
            "Tell me a story.|Tell me a story|Can you tell me a story?|A story, please.|"
            "Write a story.|Write a short story.|"
            "I want to hear a story.|Please tell me a story.|Story please|Tell me a short story.|"
            "Once more, a story!|"
            "Once upon a time|Once upon a time|Can you write a story?|Do you know a story?|"
            "Tell me a bedtime story.|Write me a story",
        )
        return question, tiny_stories.story(rng)
    if kind < 0.6:
        hero = tiny_stories.make_animal(rng, kind=rng.choice(list(tables.ANIMALS)))
        shown = f"{'a' if rng.random() < 0.7 else 'a little'} {hero.kind}"
        shown = tiny_stories.article(hero.kind) if shown.startswith("a ") and "little" not in shown else shown
        if rng.random() < 0.2:
            shown = f"{tiny_stories.article(hero.kind)} named {hero.name}"
        return frame.format(x=shown), tiny_stories.story(rng, hero)
    if kind < 0.75:
        hero = tiny_stories.make_child(rng)
        shown = rng.choice((hero.name, f"a {hero.kind} named {hero.name}", f"a {hero.kind}"))
        return frame.format(x=shown), tiny_stories.story(rng, hero)
    if kind < 0.85:
        adjectives, noun = rng.choice(tables.THINGS)
        thing = f"{rng.choice(adjectives.split('|'))} {noun}"
        return frame.format(x=tiny_stories.article(thing)), tiny_stories.story(rng, thing=thing)
    plot, themes = rng.choice(list(tiny_stories.SKELETONS.items()))
    return frame.format(x=rng.choice(themes)), tiny_stories.story(rng, plot=plot)


def strange_word(rng: Random) -> str:
    """A word that nobody knows."""
    syllables = (
        "bra clo dex fin gor hap jin kle lom mur nib ost pla qui ras sto tur vex wob yam zil gra sno pre tic lar mon"
    ).split()
    return "".join(rng.choice(syllables) for _ in range(rng.randint(2, 3)))


def creature(rng: Random) -> Exchange:
    """What an animal is, and talk about liking it."""
    kind, (what, many) = rng.choice(list(facts.CREATURES.items()))
    shown = tiny_stories.article(kind)
    if rng.random() < 0.3:
        return choose(rng, "I like {x}.|I love {x}|Do you like {x}?").format(
            x=many
        ), f"I like {many} too! Shall I tell you a story about one?"
    question = choose(
        rng,
        "What is {x}?|What's {x}?|Tell me about {y}.|Tell me something about {y}|Describe {x}.|"
        "What are {y}?|"
        "What do you know about {y}?",
    )
    return question.format(x=shown, y=many), f"{tiny_stories.capital(shown)} is {what}."


def gibberish(rng: Random) -> Exchange:
    """Something that makes no sense."""
    letters = "".join(rng.choice("asdfghjklqwertyuiopzxcvbnm") for _ in range(rng.randint(3, 9)))
    return rng.choice((letters, letters, "?", "...", "!!!", "???", letters + " " + letters[::-1])), talk.CONFUSED


def off_topic(rng: Random) -> Exchange:
    """A question that it cannot answer, and says so."""
    words = {key: rng.choice(values) for key, values in talk.OFF_TOPIC_WORDS.items()}
    words |= {
        "year": str(rng.randint(1500, 2030)),
        "land2": rng.choice(talk.OFF_TOPIC_WORDS["land"][:12]),
        "topic2": rng.choice(talk.OFF_TOPIC_WORDS["topic"]),
        "strange": strange_word(rng),
    }
    return tiny_stories.capital(rng.choice(talk.OFF_TOPIC).format(**words)), talk.UNKNOWN


def repeat(rng: Random) -> Exchange:
    """Saying a sentence after the user."""
    sentence = rng.choice(tiny_stories.story(rng).replace('"', "").split(". "))[:80].strip(" .!?")
    words = rng.sample(facts.SPELLING + facts.BIGGER + list(facts.CAPITALS.values()), rng.randint(1, 4))
    text = sentence if rng.random() < 0.4 else " ".join(words)
    return choose(rng, 'Repeat after me: {x}|Repeat: {x}|Say: {x}|Say "{x}"').format(x=text), text


def with_memory(rng: Random) -> list[Exchange]:
    """A dialogue in which a later turn needs an earlier one."""
    child = tiny_stories.make_child(rng)
    name = child.name if rng.random() < 0.8 else rng.choice(tables.SHE_ANIMALS + tables.HE_ANIMALS)
    turns = [
        (
            choose(
                rng, "My name is {n}.|I am {n}.|Hello, my name is {n}.|Hi, I'm {n}|Call me {n}.|Hello, I am {n}."
            ).format(n=name),
            choose(rng, "Nice to meet you, {n}!|Hello, {n}! How can I help you?").format(n=name),
        )
    ]
    if rng.random() < 0.4:
        turns.append(single(rng))
    turns.append(
        (
            choose(rng, "What is my name?|Who am I?|Do you remember my name?|What's my name?|Do you know my name?"),
            f"Your name is {name}.",
        )
    )
    if rng.random() < 0.3:
        thing, shade = rng.choice(list(facts.COLOURS.items()))
        turns = [(f"What colour is {thing}?", f"{tiny_stories.capital(thing)} is {shade}.")]
        other, other_shade = rng.choice(list(facts.COLOURS.items()))
        turns.append((f"And {other}?", f"{tiny_stories.capital(other)} is {other_shade}."))
    elif rng.random() < 0.15:
        first, second = rng.sample(talk.JOKES, 2)
        turns = [("Tell me a joke.", first), (choose(rng, "Another one, please.|Another one!|One more|Again!"), second)]
    return turns


TOPICS: tuple[tuple[Callable[[Random], Exchange], float], ...] = (
    (about, 14),
    (small_talk, 9),
    (trivia, 9),
    (colour, 7),
    (sums, 30),
    (compare_numbers, 2),
    (counting, 3),
    (order, 5),
    (animal, 9),
    (capital_city, 6),
    (opposite, 5),
    (spelling, 2),
    (performance, 6),
    (tell_story, 7),
    (off_topic, 10),
    (repeat, 4),
    (creature, 5),
    (gibberish, 1),
)


def loosen(rng: Random, question: str) -> str:
    """The question as people type it: without capitals, without its mark, or with a polite word."""
    dice = rng.random()
    if dice < 0.12:
        question = question.lower()
    elif dice < 0.2:
        question = question.rstrip(".?!")
    elif dice < 0.28:
        question = question.lower().rstrip(".?!")
    elif dice < 0.31:
        question = question.upper()
    elif dice < 0.36 and len(question) > 8:
        question = rng.choice(("Hello! ", "Hi, ", "Please tell me: ", "Hey Kilo, ", "OK. ", "So, ", "Now: ")) + question
    elif dice < 0.39 and question.endswith("?"):
        question = question[:-1] + rng.choice((", please?", " please?", "??", " ?"))
    return question


def single(rng: Random) -> Exchange:
    """One exchange on a random topic."""
    topic = rng.choices([t for t, _ in TOPICS], [w for _, w in TOPICS])[0]
    question, answer = topic(rng)
    return question if topic is repeat else loosen(rng, question), answer


def conversation(rng: Random) -> list[dict[str, str]]:
    """A whole dialogue as chat messages."""
    dice = rng.random()
    if dice < 0.1:
        turns = with_memory(rng)
    else:
        turns = [single(rng) for _ in range(rng.choices((1, 2, 3, 4), (60, 22, 12, 6))[0])]
    messages = []
    dice = rng.random()
    if dice < 0.03:
        messages.append({"role": "system", "content": rng.choice(PIRATE_SYSTEMS)})
        turns = [(question, f"Arr! {answer}") for question, answer in turns]
    elif dice < 0.2:
        messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages
