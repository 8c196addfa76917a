"""A small grammar of stories: seeded, grammatical, and consistent about who has what and where.

A `Teller` remembers the hero, the friend, the place and the thing of one story, and fills them into sentence
templates. `{he}` and friends follow the hero's gender, `{fhe}` the friend's. A vertical bar separates paraphrases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import tiny_corpus_tables as tables

PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "him", "his")}


def article(noun: str) -> str:
    """`noun` with the indefinite article that it takes."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capital(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


@dataclass(frozen=True)
class Character:
    """Somebody in a story."""

    name: str
    kind: str
    pronoun: str
    home: str
    food: str
    talent: str

    @property
    def is_child(self) -> bool:
        return self.kind in ("girl", "boy")

    def words(self, prefix: str) -> dict[str, str]:
        """Template words for this character: name, kind and pronouns, each behind `prefix`."""
        he, him, his = PRONOUNS[self.pronoun]
        words = {"n": self.name, "kind": self.kind, "he": he, "him": him, "his": his}
        words |= {"He": capital(he), "His": capital(his)}
        return {prefix + key: value for key, value in words.items()}


def make_child(rng: Random, name: str | None = None) -> Character:
    """A girl or a boy."""
    is_girl = name in tables.GIRLS if name else rng.random() < 0.5
    name = name or rng.choice(tables.GIRLS if is_girl else tables.BOYS)
    home = rng.choice(tables.CHILD_HOMES.split("|"))
    food, talent = rng.choice(("cookies", "apples", "cake", "soup")), rng.choice(("running", "climbing", "building"))
    return Character(name, "girl" if is_girl else "boy", "she" if is_girl else "he", home, food, talent)


def make_animal(rng: Random, kind: str | None = None, avoid: tuple[str, ...] = ()) -> Character:
    """An animal (or a dragon, or a robot) with a name. A llama is often called Kilo."""
    kind = kind or rng.choice([k for k in tables.ANIMALS if k not in avoid])
    home, food, talent = tables.ANIMALS[kind]
    if kind == "llama" and rng.random() < 0.7:
        return Character("Kilo", kind, "he", home, food, talent)
    is_she = rng.random() < 0.5
    name = rng.choice(tables.SHE_ANIMALS if is_she else tables.HE_ANIMALS)
    return Character(name, kind, "she" if is_she else "he", home, food, talent)


class Teller:
    """Writes one story, sentence by sentence."""

    def __init__(self, rng: Random, hero: Character, place: str | None = None, thing: str | None = None) -> None:
        self.rng = rng
        self.hero = hero
        self.friend = make_animal(rng, avoid=(hero.kind, *tables.NOT_IN_STORIES_AS_FRIEND))
        while self.friend.name == hero.name:
            self.friend = make_animal(rng, avoid=(hero.kind, *tables.NOT_IN_STORIES_AS_FRIEND))
        place = place or rng.choice(list(tables.PLACES))
        at, go, spots = tables.PLACES[place]
        elder = rng.choice(("mother", "father", "grandmother", "grandfather"))
        self.words = (
            hero.words("")
            | self.friend.words("f")
            | {
                "place": place,
                "at": f"{at} {place}",
                "go": go,
                "spot": rng.choice(spots.split("|")),
                "o": thing or self.pick_thing(),
                "home": hero.home,
                "food": hero.food,
                "talent": hero.talent,
                "elder": elder,
            }
        )
        self.words["ehe"] = "she" if elder in ("mother", "grandmother") else "he"
        self.words["a_o"] = article(self.words["o"])
        self.words["the_h"] = "the " + ("little " if rng.random() < 0.5 else "") + hero.kind
        self.words["a_f"] = article(self.friend.kind)
        self.sentences: list[str] = []

    def pick_thing(self) -> str:
        """A treasured thing with its adjective, such as `red kite`."""
        adjectives, noun = self.rng.choice(tables.THINGS)
        return f"{self.rng.choice(adjectives.split('|'))} {noun}"

    def say(self, options: str, chance: float = 1.0) -> None:
        """Add one of the paraphrases, with the probability `chance`."""
        if self.rng.random() < chance:
            self.sentences.append(capital(self.rng.choice(options.split("|")).format(**self.words)))

    def let(self, **words: str) -> None:
        """Remember more words for the templates."""
        self.words |= words

    def open(self) -> None:
        """The first two sentences: who, and where."""
        adjective = self.rng.choice(tables.ADJECTIVES)
        who = article(f"{adjective} {self.hero.kind}")
        self.let(who=who)
        start = "Once upon a time, there was {who} named {n}. {He} lived {home}."
        if self.rng.random() < 0.45:
            start = (
                "Once upon a time, there was {who} called {n}. {He} lived {home}.|"
                "Once upon a time, {who} named {n} lived {home}.|There once was {who} named {n} who lived {home}.|"
                "{n} was {who} who lived {home}.|Long ago, {who} named {n} lived {home}.|"
                "Once there was {who} named {n}. {He} lived {home}.|"
                "Once upon a time, {home}, there lived {who} named {n}.|{home}, there lived {who} named {n}."
            )
        self.say(start)
        self.say(
            "{n} loved {food} and was very good at {talent}.|{n} liked {food}, and {he} loved {talent} even more.|"
            "Everybody knew {n}, because {he} always said hello.|{n} was small, but {his} heart was big.|"
            "{n} liked to ask questions about everything.|Every morning, {n} said good morning to the sun.",
            0.3,
        )

    def time(self) -> None:
        """Choose when it happens, for `{time}`."""
        self.let(time=self.rng.choice(tables.TIMES.split("|")))

    def text(self) -> str:
        """The whole story, now and then with a formal end."""
        end = self.rng.choice((" The end.", " And that is the end of the story.")) if self.rng.random() < 0.2 else ""
        return " ".join(self.sentences) + end


def happy_end(t: Teller, chance: float = 0.6) -> None:
    """A last sentence that fits any story."""
    t.say(
        "That night, {n} slept very well.|{n} smiled all the way home.|And {n} was happy for the rest of the day.|"
        "It was the best day of the year.|{n} never forgot that day.|"
        "That evening, {n} told {his} {elder} everything.|"
        "And when the stars came out, {n} was already asleep.",
        chance,
    )


def lost_thing(t: Teller) -> None:
    t.say(
        "{n} had {a_o}, and {he} took it everywhere.|{His} favourite thing in the world was {a_o}.|"
        "{n} had {a_o} that {his} {elder} had given {him}."
    )
    t.say("{time}, {n} went {go} to play.|{time}, {he} took the {o} {go}.|{time}, {n} walked {go} with the {o}.")
    t.say(
        "But when {he} came home, the {o} was gone.|But suddenly the {o} was gone.|"
        "When it was time to go home, {he} could not find the {o}."
    )
    t.say('{n} was very sad.|A big tear rolled down {his} nose.|"Oh no!" cried {n}.|{n} looked everywhere.', 0.8)
    t.say(
        'Then {a_f} named {fn} came by. "What is wrong?" asked {fn}.|'
        "{fn} the {fkind} heard {him} and came to help.|"
        '{a_f} named {fn} saw {him} and stopped. "Can I help you?" {fhe} asked.'
    )
    t.say(
        '"I lost my {o}," said {n}. "Let us look for it together," said {fn}.|'
        '"My {o} is gone," said {n}. "Do not worry," said {fn}. "We will find it."'
    )
    t.say(
        "They looked and looked, and at last they found the {o} {spot}.|"
        "They searched {place} from end to end. There it was, {spot}!|"
        "At last {fn} saw something {spot}. It was the {o}!"
    )
    t.say(
        '{n} hugged {fn} and said thank you.|"Thank you!" said {n}, and {he} gave {fn} a big hug.|'
        "{n} was so happy that {he} danced."
    )
    t.say(
        "From that day on, they were best friends.|From then on, {n} and {fn} played together every day.|"
        "{n} had found {his} {o}, and a new friend too."
    )


def overcome_fear(t: Teller) -> None:
    fear, truth, act = t.rng.choice(tables.FEARS)
    t.let(fear=fear, truth=truth, act=act)
    t.say(
        "{n} was brave, but {he} was afraid of {fear}.|There was only one problem: {n} was afraid of {fear}.|"
        "But {n} had a secret. {He} was afraid of {fear}."
    )
    t.say(
        "{time}, {his} friend {fn} the {fkind} came to visit.|"
        "{time}, {n} told {his} friend {fn} the {fkind} about it.|"
        "{time}, {he} met {a_f} named {fn}, and they talked about it."
    )
    t.say('"I am afraid of {fear}," said {n} in a small voice.|"I wish I were not afraid," said {n}.')
    t.say(
        '"Everybody is afraid of something," said {fn}. "Shall we try together?"|'
        '{fn} did not laugh. "I will stay with you," {fhe} said.|'
        '"I was afraid too, once," said {fn}. "Take a deep breath, and hold on to me."'
    )
    t.say("So {n} took a deep breath and {act}.|So {n} {act}, and {fn} stayed close.|Slowly, {n} {act}.")
    t.say("And then {he} saw that {truth}.|To {his} surprise, {truth}.|{n} found out that {truth}.")
    t.say('"I did it!" cried {n}.|"It is not so bad!" said {n}.|{n} began to laugh.', 0.8)
    t.say(
        "After that, {n} was never so afraid of {fear} again.|"
        "Being brave, {n} thought, is being afraid and trying anyway.|"
        "From that day on, {n} helped others who were afraid."
    )


def rescue(t: Teller) -> None:
    who, trouble, aid, thanks = t.rng.choice(tables.TROUBLES)
    t.let(c=who, the_c="the " + who.split(" ", 1)[1], trouble=trouble, aid=aid, thanks=thanks)
    t.say("{time}, {n} went {go}.|{time}, {n} was walking {go}.|{time}, {n} was on {his} way {go}.")
    t.say(
        "There {he} saw {c} that {trouble}.|On the way, {he} met {c} that {trouble}.|"
        "Suddenly {he} heard a small voice. It was {c} that {trouble}."
    )
    t.say('"Please help me!" said {the_c}.|"Can you help me?" asked {the_c}.|{the_c} looked very sad.')
    t.say('"Of course," said {n}.|"Do not be afraid," said {n}.|{n} thought for a moment.|"I will try," said {n}.')
    t.say("{He} {aid}.|Very carefully, {he} {aid}.|With a lot of care, {n} {aid}.")
    t.say('{the_c} was so happy that it {thanks}.|"Thank you, {n}!" said {the_c}, and it {thanks}.')
    t.say(
        '{n} walked home with a warm feeling in {his} heart.|"It is good to be kind," thought {n}.|'
        "From that day on, {n} and {the_c} were friends.|Helping others made {n} feel as tall as a tree."
    )
    happy_end(t, 0.25)


def share_food(t: Teller) -> None:
    food = t.rng.choice(tables.FOODS.split("|"))
    t.let(m=food, the_m="the " + food.split(" ", 1)[1])
    t.say(
        "{time}, {n} had {m} and wanted to eat it all alone.|{time}, {his} {elder} gave {him} {m}.|"
        "{time}, {n} took {m} {go}."
    )
    t.say(
        "Then {he} met {a_f} named {fn}.|Just then, {a_f} named {fn} came along.|"
        "{fn} the {fkind} was sitting under a tree."
    )
    t.say('"I am so hungry," said {fn}.|{fn} looked at {the_m} with big eyes.|"That smells so good," said {fn}.')
    t.say("{n} looked at {the_m}. Then {he} looked at {fn}.|{n} thought about it for a while.", 0.6)
    t.say('"Let us share it," said {n}.|"You can have half," said {n}.|"There is enough for two," said {n} at last.')
    t.say("They sat down together and ate {the_m}.|So they sat in the grass and ate {the_m} together.")
    t.say(
        "It tasted better than anything {n} had ever eaten.|{n} saw that food tastes better with a friend.|"
        "When {the_m} was gone, they were both full and happy."
    )
    t.say(
        "The next day, {fn} came back with a gift for {n}.|From that day on, they always had lunch together.|"
        "And so {n} made a new friend."
    )


def learn_skill(t: Teller) -> None:
    skill, wrong, right = t.rng.choice(tables.SKILLS)
    t.let(skill=skill, wrong=wrong, right=right)
    t.say(
        "More than anything, {n} wanted {skill}.|{n} had one big wish. {He} wanted {skill}.|"
        "{time}, {n} decided that {he} wanted {skill}."
    )
    t.say("{He} tried, but {he} {wrong}.|The first time, {he} {wrong}.|But every time {he} tried, {he} {wrong}.")
    t.say('"I will never learn it," said {n}.|{n} wanted to give up.|"This is too hard," said {n} and sat down.')
    t.say(
        '"Try once more," said {his} {elder}. "Nobody is good at the start."|'
        '{fn} the {fkind} smiled. "Try again, a little every day," {fhe} said.|'
        '"Small steps," said {fn} the {fkind}. "Small steps go a long way."'
    )
    t.say(
        "So {n} tried again the next day, and the day after that.|So {n} practised every day, even in the rain.|"
        "{n} tried ten times, and then ten times more."
    )
    t.say("And one day, {he} {right}!|Then one fine morning, {n} {right}.|At last, {he} {right}.")
    t.say('Everybody clapped.|"You did it!" everybody cheered.|{n} could hardly believe it.', 0.7)
    t.say(
        "{n} was very proud.|{n} had learned something else too: never give up too soon.|"
        "And the next day, {n} taught it to a friend."
    )


def weather_day(t: Teller) -> None:
    opening, built, parts, end = t.rng.choice(tables.WEATHER_DAYS)
    t.let(weather=opening, built=built, parts=parts, end=end)
    t.say("{weather}.|One morning, {n} looked outside. {weather}.")
    t.say(
        '"What shall we do today?" asked {fn} the {fkind}.|{his} friend {fn} the {fkind} came to play.|'
        "{n} had nothing to do, and so {he} called {his} friend {fn} the {fkind}."
    )
    t.say(
        '"I have an idea," said {n}. "Let us make {built}!"|"Let us make {built}," said {n}.|'
        '"We could make {built}," said {fn}. {n} liked the idea.'
    )
    t.say("They found {parts}.|They used {parts}.|All they needed was {parts}.")
    t.say(
        "It was not easy, but they worked together.|They laughed and worked for an hour.|"
        "{n} held everything while {fn} put it together.",
        0.7,
    )
    t.say(
        "Soon they had made {built}, and it was wonderful.|In the end, it was the best they had ever seen.|"
        "At last it was finished, and they cheered."
    )
    t.say("{end}.")
    happy_end(t, 0.5)


def plant_seed(t: Teller) -> None:
    seed, grown = t.rng.choice(tables.SEEDS)
    t.let(seed=article(seed + " seed"), grown=grown)
    t.say("{time}, {n} found {seed} on the path.|{time}, {his} {elder} gave {him} {seed}.")
    t.say("{He} made a hole in the ground and put the seed into it.|{He} planted it in the garden, next to the wall.")
    t.say("Every day, {n} gave it some water.|Every day, {he} came with a little can of water.")
    t.say("But nothing happened.|One week passed, and nothing happened.|For many days, there was nothing to see.")
    t.say(
        '"Is it asleep?" asked {n}. "Be patient," said {his} {elder}.|'
        '"When will it grow?" asked {n}. "Give it time," said {fn} the {fkind}.'
    )
    t.say("Then, one morning, there was a tiny green leaf.|After a night of rain, a small green leaf came out.")
    t.say("It grew and grew, until it was {grown}.|By the end of summer, it had become {grown}.")
    t.say(
        'Everybody came to look at it.|{n} danced around it.|"Good things take time," said {n}.|'
        '"I knew that you could do it," {n} told the plant.'
    )
    happy_end(t, 0.3)


def race(t: Teller) -> None:
    t.say("{time}, there was a race {at}.|{time}, all the animals met for a big race.")
    t.say(
        '{fn} the {fkind} was very fast. "I will win," {fhe} said.|"Nobody is as fast as I am," said {fn} the {fkind}.'
    )
    t.say('{n} was not fast, but {he} wanted to try.|"I am slow," said {n}, "but I will do my best."')
    t.say("One, two, three, go! {fn} ran ahead at once.|The race began, and {fn} was soon far away.")
    t.say("But then {fn} stopped to take a nap under a tree.|But then {fn} fell over a root and hurt {fhis} leg.")
    if "hurt" in t.sentences[-1]:
        t.say('{n} could have run past {fhim}. But {he} stopped. "Are you all right?" {he} asked.')
        t.say(
            "{n} helped {fn} to stand up, and they crossed the line together.|"
            '"Lean on me," said {n}, and they finished the race side by side.'
        )
        t.say("Everybody cheered for both of them.|They came last, but the cheers were the loudest for them.")
        t.say('"You are a true friend," said {fn}.|From that day on, {fn} did not boast any more.')
        return
    t.say("{n} went on, step by step, and did not stop.|Step by step, {n} walked past {fhim}.")
    t.say("When {fn} woke up, {n} was already at the end.|{fn} woke up and ran, but it was too late.")
    t.say('{n} had won the race, and everybody cheered.|"Slow and steady wins the race," said {n} with a smile.')


def gift(t: Teller) -> None:
    present, made = t.rng.choice(tables.GIFTS)
    t.let(g=present, made=made)
    t.say("{time}, {n} remembered that it was {his} {elder}'s birthday.|It was the birthday of {his} {elder}.")
    t.say('{n} wanted to give something special, but {he} had no money.|"What can I give?" thought {n}.')
    t.say(
        '{He} asked {fn} the {fkind}. "The best gifts come from the heart," {fhe} said.|'
        '"Make something yourself," said {fn} the {fkind}.'
    )
    t.say("So {n} {made} {g}.|{n} worked all day and {made} {g}.|{He} sat down and {made} {g}.")
    t.say("It was not perfect, but it was made with love.|{He} worked very hard on it.", 0.6)
    t.say('In the evening, {n} gave it to {his} {elder}.|When the evening came, {n} said, "This is for you!"')
    t.say('{his} {elder} was so happy that {ehe} cried a little.|"It is the best present of all," said {his} {elder}.')
    t.say("Then they all ate cake together.|{n} got the biggest hug in the world.|And they danced in the kitchen.")


def quarrel(t: Teller) -> None:
    t.say("{n} and {fn} the {fkind} were best friends.|{His} best friend was {a_f} named {fn}.")
    t.say("{time}, they found {a_o} {at}.|{time}, they were playing {at} and saw {a_o}.")
    t.say('"It is mine!" said {n}. "No, it is mine!" said {fn}.|Both of them wanted to have it.')
    t.say("They pulled and pulled, and the {o} fell into the mud.|They were so angry that they both went home.")
    t.say("That night, {n} could not sleep. {He} missed {his} friend.|{n} sat alone and felt sorry.")
    t.say(
        'The next morning, {he} went to {fn}. "I am sorry," said {n}.|'
        'In the morning, {n} knocked at the door of {fn}. "I am sorry," {he} said.'
    )
    t.say('"I am sorry too," said {fn}. "You can have the {o}."|"So am I," said {fn}.')
    t.say('"Let us take turns," said {n}.|"A friend is worth more than {a_o}," said {n}.')
    t.say("And they played together until the sun went down.|After that, they shared everything.")


def discovery(t: Teller) -> None:
    found, where, inside = t.rng.choice(tables.FOUND)
    t.let(found=found, where=where, inside=inside)
    t.say(
        "{time}, {n} was out for a walk with {fn} the {fkind}.|"
        "{time}, {n} and {his} friend {fn} the {fkind} were exploring."
    )
    t.say('Suddenly, {n} saw {found} {where}.|"Look!" said {fn}. There was {found} {where}.')
    t.say('"What can it be?" asked {n}.|"How strange!" said {fn}.|They looked at each other with big eyes.', 0.8)
    t.say("{inside}.")
    t.say('"It is like magic," said {n}.|They could not believe their eyes.|"This is our secret," said {fn}.')
    t.say("They stayed until the sun went down.|They laughed and danced for joy.", 0.6)
    t.say(
        "After that, they came back every day.|And they promised to look after it together.|"
        "It was the best secret that two friends ever had."
    )


def sleepless(t: Teller) -> None:
    t.say("One night, {n} could not sleep.|It was late, but {n} was wide awake.")
    t.say("{He} counted sheep, but it did not help.|{He} turned left, and {he} turned right.", 0.7)
    t.say("So {he} went to the window and looked at the moon.|Outside, the moon was round and bright.")
    t.say('"Hello, moon," said {n}. "Are you awake too?"|"Moon, why can I not sleep?" asked {n}.')
    t.say("The moon said nothing, but it seemed to smile.|A soft wind moved the leaves, as if to answer.")
    t.say("Far away, an owl called. A star fell over {place}.|One by one, the stars came out over {place}.")
    t.say("{n} made a wish and told it to nobody.|{n} thought of all the good things of the day.")
    t.say("Soon {his} eyes were heavy, and {he} fell asleep.|And before {he} could count to ten, {he} was asleep.")
    t.say("In {his} dream, {he} was flying over {place} with {fn} the {fkind}.|The moon kept watch until the morning.")


def lost_way(t: Teller) -> None:
    t.say("{time}, {n} went {go} and forgot the time.|{time}, {n} followed a butterfly {go}.")
    t.say("When {he} looked up, {he} did not know where {he} was.|Soon it grew dark, and {he} had lost {his} way.")
    t.say('"Which way is home?" asked {n}. Nobody answered.|{n} sat down on a stone and began to cry.')
    t.say(
        "Then {he} saw a small light. It was {fn} the {fkind} with a lantern.|"
        "Then {a_f} named {fn} came out of the dark."
    )
    t.say('"Do not cry," said {fn}. "I know the way."|"Come with me," said {fn}. "I will take you home."')
    t.say(
        "They walked past the old tree, over the bridge and along the river.|They walked side by side and sang a song."
    )
    t.say(
        "At last, {n} saw {his} own front door, and {his} {elder} was waiting.|"
        "Soon {n} could see the light of {his} home."
    )
    t.say('"Thank you for showing me the way," said {n}.|{his} {elder} gave them both a cup of hot milk.')
    happy_end(t, 0.4)


def soup(t: Teller) -> None:
    t.say("{time}, {n} wanted to make soup, but {he} had only one onion.|{time}, {n} had only a pot and some water.")
    t.say('"I will make soup for everybody," {he} said anyway.|{He} lit a fire {at}.')
    t.say('{fn} the {fkind} came by. "What are you making?" {fhe} asked.|Soon {fn} the {fkind} came to see.')
    t.say('"Soup," said {n}, "but something is missing."|"The best soup in the world," said {n}. "It is almost ready."')
    t.say("So {fn} brought some carrots.|So {fn} ran home and came back with potatoes.")
    t.say("Others came too, and each of them brought something.|A mouse brought salt, and a hen brought an herb.")
    t.say("In the end, the pot was full, and it smelled wonderful.|The soup grew thicker and thicker.")
    t.say("They all ate together, and there was enough for everybody.|Everybody had two bowls.")
    t.say(
        '"It was a very small onion," said {n}, "but we have very good friends."|'
        "When everybody gives a little, there is enough for all."
    )


def small_machine(t: Teller) -> None:
    t.say("{n} had a small computer that was very old and very slow.|{time}, {n} found a small old computer in a box.")
    t.say(
        'The big computers laughed at it. "You are too small to tell stories," they said.|'
        '"It is far too small for words," said everybody.'
    )
    t.say("But {n} was patient. {He} taught it one word every day.|But {n} sat down and taught it words, one by one.")
    t.say(
        'First it learned "hello". Then it learned "star" and "sea" and "friend".|'
        "It learned the names of all the animals and all the colours."
    )
    t.say("{fn} the {fkind} came every evening to listen.|In the evenings, {n} read stories to it.", 0.7)
    t.say(
        "And one night, the little computer began to tell a story.|"
        'One night, a line of text appeared: "Once upon a time".'
    )
    t.say(
        "It was a short story, but it was a good one.|The story was small, just like the computer, and it was lovely."
    )
    t.say(
        '"You do not have to be big to have something to say," said {n}.|'
        'After that, nobody laughed at the little computer again.|"Again!" said {n}. And it told another one.'
    )


def mountain_words(t: Teller) -> None:
    t.say(
        "{His} work was to carry words up the mountain, one at a time.|"
        "Every day, {he} carried a basket of words to the village at the top of the mountain."
    )
    t.say(
        '"Why do you take only one at a time?" asked {fn} the {fkind}.|'
        '"Other carriers have big carts," said {fn} the {fkind}. "Why are you so slow?"'
    )
    t.say(
        '"One word follows another," said {n}. "That is how a story is made."|'
        '"The path is narrow," said {n}, "and a good word is worth a step."'
    )
    t.say(
        "One day, a storm came, and the big carts could not move.|"
        "Then the snow came, and all the big carts stood still."
    )
    t.say("But {n} went on, step by step, through the wind.|Only {n} walked on, with one word after the other.")
    t.say(
        "In the evening, the village had a whole story, and the children were happy.|"
        "When {he} put down the last word, the children clapped."
    )
    t.say('"And they lived happily ever after," it said.|The last words were "the end", and they were just right.', 0.6)
    t.say('"Small and light," said {n}, "gets there too."|{n} smiled, and went back down for the next word.')


SKELETONS: dict[Callable[[Teller], None], tuple[str, ...]] = {
    lost_thing: ("something lost", "a lost toy", "losing something"),
    overcome_fear: ("being brave", "courage", "being afraid"),
    rescue: ("helping", "kindness", "a rescue"),
    share_food: ("sharing", "a shared lunch", "food"),
    learn_skill: ("learning", "never giving up", "practice"),
    weather_day: ("the weather", "a rainy day", "building something"),
    plant_seed: ("a seed", "a plant", "patience"),
    race: ("a race", "being slow", "winning"),
    gift: ("a birthday", "a gift", "a present"),
    quarrel: ("a quarrel", "being sorry", "friends"),
    discovery: ("a secret", "a discovery", "a treasure"),
    sleepless: ("the moon", "the night", "sleep"),
    lost_way: ("getting lost", "the way home", "a light in the dark"),
    soup: ("soup", "cooking", "many friends"),
    small_machine: ("a computer", "a small computer", "a language model"),
    mountain_words: ("a mountain", "words", "a carrier of words"),
}


def story(
    rng: Random,
    hero: Character | None = None,
    place: str | None = None,
    thing: str | None = None,
    plot: Callable[[Teller], None] | None = None,
) -> str:
    """One complete story. What is not given is chosen."""
    if plot is None:
        plot = rng.choice((lost_thing, quarrel)) if thing else rng.choice(list(SKELETONS))
    if hero is None:
        hero = make_child(rng) if rng.random() < 0.45 else make_animal(rng)
        if plot is mountain_words or rng.random() < 0.03:
            hero = make_animal(rng, kind="llama")
    teller = Teller(rng, hero, place, thing)
    teller.open()
    teller.time()
    plot(teller)
    return teller.text()
