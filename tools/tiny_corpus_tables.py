"""Word tables for the stories of the bundled tiny model: who, where, what, when.

Everything here was written for kilotron and is licensed like the rest of it (Apache-2.0). A vertical bar separates
alternatives. The tables hold no code; `tiny_stories.py` builds sentences from them.
"""

from __future__ import annotations

GIRLS = (
    "Lily Anna Mia Rosa Emma Clara Nora Maya Ella Lucy Ruby Ivy Sara Zoe Hanna Alice Daisy Grace Lina Tara Amina Mei "
    "Sofia Olga Freya Priya Leila Yuki Marta Wendy"
).split()
BOYS = (
    "Tom Ben Sam Max Leo Tim Jack Finn Noah Oscar Hugo Omar Ravi Theo Luca Paul Peter Adam Felix Emil Kofi Ken Ivan "
    "Diego Anton Jonas Milo Otto Henry Ali"
).split()
SHE_ANIMALS = "Tilly Momo Hazel Willow Poppy Bella Luna Dotty Misty Clover Pearl Nutmeg Olive Fern Cookie Maple".split()
HE_ANIMALS = (
    "Pip Bramble Rusty Toby Biscuit Monty Pepper Basil Bruno Ziggy Barley Chester Dash Teddy Moss Button".split()
)

# kind: (home, favourite food (plural or mass), what it is good at)
ANIMALS: dict[str, tuple[str, str, str]] = {
    "fox": ("in a den under an old oak tree", "berries", "running"),
    "rabbit": ("in a burrow at the edge of the meadow", "carrots", "hopping"),
    "bear": ("in a cave on the side of the hill", "honey", "climbing"),
    "mouse": ("in a tiny house behind the mill", "cheese", "hiding"),
    "owl": ("in a hollow tree in the forest", "nuts", "flying"),
    "squirrel": ("at the top of a tall pine tree", "nuts", "jumping"),
    "hedgehog": ("under a pile of golden leaves", "apples", "rolling"),
    "duck": ("by a quiet pond", "bread", "swimming"),
    "frog": ("on a lily pad in the pond", "cake", "jumping"),
    "cat": ("in a yellow house by the sea", "fish", "climbing"),
    "dog": ("on a small farm near the river", "bones", "running"),
    "llama": ("high up in the green mountains", "grass", "walking"),
    "goat": ("on a rocky hill above the village", "clover", "climbing"),
    "turtle": ("on a warm beach", "lettuce", "swimming"),
    "penguin": ("on a white island in the cold sea", "fish", "sliding"),
    "elephant": ("near a wide river in the south", "bananas", "splashing"),
    "deer": ("deep in the quiet forest", "clover", "running"),
    "beaver": ("in a wooden lodge on the river", "apples", "building"),
    "pony": ("in a red barn on a farm", "carrots", "running"),
    "dragon": ("in a cave behind a waterfall", "soup", "flying"),
    "robot": ("in a workshop full of tools", "oil", "building"),
}
NOT_IN_STORIES_AS_FRIEND = ("dragon", "robot")
ADJECTIVES = "little small young kind clever brave curious cheerful gentle shy friendly".split()

CHILD_HOMES = (
    "in a small house by the sea|in a little village near the forest|in a tall house at the end of the street|"
    "on a farm with many animals|in a cosy cottage on the hill|in a busy town by the river|in a white lighthouse|"
    "in a blue house with a big garden|above a small bakery|next to the old mill"
)

TIMES = (
    "One day|One morning|One sunny morning|One afternoon|One bright day|One quiet afternoon|On a warm summer day|"
    "One spring morning|Early one morning|One day in autumn"
)

# place: (preposition, how one goes there, hiding spots)
PLACES: dict[str, tuple[str, str, str]] = {
    "the forest": (
        "in",
        "into the forest",
        "under a fern|behind a mossy rock|in a pile of leaves|under a big mushroom",
    ),
    "the garden": (
        "in",
        "into the garden",
        "under a big leaf|behind the watering can|next to the roses|in the long grass",
    ),
    "the park": ("in", "to the park", "under a bench|behind a tree|in the tall grass|beside the fountain"),
    "the beach": (
        "on",
        "to the beach",
        "behind a sandcastle|under a pile of shells|between two rocks|next to an old boat",
    ),
    "the meadow": ("in", "to the meadow", "in the tall grass|under a yellow flower|beside the stream|behind a bush"),
    "the river": ("by", "down to the river", "under the bridge|between two stones|behind the reeds|next to a log"),
    "the farm": ("on", "to the farm", "in the hay|behind the barn|under the cart|next to the well"),
    "the hill": ("on", "up the hill", "behind a big stone|under the old apple tree|in the tall grass|near the top"),
    "the market": (
        "at",
        "to the market",
        "under a table|behind a basket of apples|next to a sack of flour|under a cart",
    ),
    "the village": ("in", "to the village", "beside the well|under a bench|behind the bakery|on the church steps"),
}

# treasured things: (colour or kind adjectives, noun)
THINGS: tuple[tuple[str, str], ...] = (
    ("red|blue|yellow|green|shiny", "ball"),
    ("red|blue|yellow|big|paper", "kite"),
    ("warm|red|blue|woolly|green", "scarf"),
    ("silver|golden|tiny|shiny", "bell"),
    ("small|wooden|red|blue", "boat"),
    ("silver|golden|old|tiny", "key"),
    ("soft|blue|red|striped", "blanket"),
    ("red|woolly|warm|blue", "hat"),
    ("little|wooden|silver|tin", "whistle"),
    ("round|green|shiny|blue", "button"),
    ("wooden|small|red|old", "drum"),
    ("yellow|red|striped|big", "umbrella"),
    ("white|pink|smooth|shiny", "shell"),
    ("small|bright|old|brass", "lantern"),
    ("old|blue|thick|little", "book"),
)

FEARS: tuple[tuple[str, str, str], ...] = (
    ("the dark", "the dark was full of stars", "looked up at the sky"),
    ("thunder", "thunder was only the sky clapping its hands", "counted slowly after each flash"),
    ("the deep water", "the water could hold a swimmer up", "lay back and floated like a leaf"),
    ("high places", "the whole valley could be seen from the top", "climbed one step at a time"),
    ("the wind", "the wind only wanted to play", "held out both arms and laughed"),
    ("the old bridge", "the bridge was strong and safe", "took one small step and then another"),
    ("singing in front of others", "everybody was listening with a smile", "closed both eyes and began to sing"),
    ("the first day of school", "the others were a little afraid too", "said hello to the first friendly face"),
)

# a skill: (to learn, what goes wrong, what works)
SKILLS: tuple[tuple[str, str, str], ...] = (
    ("to ride a bicycle", "fell into the grass", "rode all the way down the lane"),
    ("to fly a kite", "let the kite fall into a bush", "made the kite dance among the clouds"),
    ("to swim", "swallowed some water", "swam from one side of the pond to the other"),
    ("to bake bread", "burned the bread until it was black", "took a warm golden loaf out of the oven"),
    ("to play the flute", "made a noise like an angry goose", "played a sweet little song"),
    ("to whistle", "blew nothing but air", "whistled like a bird"),
    ("to paint", "spilled the blue paint on the floor", "painted a picture of the sea"),
    ("to skate", "slid and landed in the snow", "skated in a perfect circle"),
    ("to dance", "stepped on everybody's toes", "danced until the moon came up"),
    ("to read", "mixed up all the letters", "read a whole page aloud"),
    ("to juggle", "dropped every apple", "kept three apples in the air"),
    ("to count to one hundred", "lost count at twelve", "counted to one hundred without a mistake"),
)

# creature in trouble: (who, the trouble, the help, the thanks)
TROUBLES: tuple[tuple[str, str, str, str], ...] = (
    ("a small bird", "had fallen out of its nest", "carried it gently back to the nest", "sang a song"),
    ("a tiny bee", "had fallen into a puddle", "lifted it out on a leaf", "buzzed in a happy circle"),
    ("a lamb", "was stuck in the mud", "pulled until it was free", "jumped for joy"),
    ("a baby duck", "had lost its mother", "led it back to the pond", "quacked three times"),
    ("a kitten", "was too scared to climb down from a tree", "climbed up and brought it down", "purred loudly"),
    ("a beetle", "was lying on its back", "turned it over with a twig", "waved its tiny legs"),
    ("a snail", "could not cross the busy road", "carried it safely to the other side", "smiled slowly"),
    ("a young goat", "had caught its horns in a fence", "opened the fence with care", "danced on the grass"),
    ("a fish", "was trapped in a shallow pool", "dug a little path to the river", "splashed with its tail"),
    ("a butterfly", "was caught in a spider web", "set it free with a soft touch", "danced in the air"),
)

FOODS = (
    "a warm loaf of bread|a basket of berries|a big round cake|a pot of soup|a bag of apples|a jar of honey|"
    "a plate of cookies|an apple pie|a bowl of cherries|a piece of cheese"
)

# weather days: (opening, what to build or do, with what, how it ends)
WEATHER_DAYS: tuple[tuple[str, str, str, str], ...] = (
    (
        "It had snowed all night, and the world was white",
        "a snowman",
        "two stones and a carrot",
        "When the sun set, the snowman seemed to smile",
    ),
    (
        "It was raining, and nobody could play outside",
        "a tent out of blankets",
        "two chairs and a broom",
        "The rain drummed on the roof like a lullaby",
    ),
    (
        "The wind was strong, and the leaves were flying",
        "a kite",
        "paper, string and two sticks",
        "The kite flew so high that it looked like a bird",
    ),
    (
        "The sun was hot, and the sand was warm",
        "a sandcastle",
        "wet sand and white shells",
        "When the waves came, the castle went to sea",
    ),
    (
        "The fog was so thick that the trees looked like giants",
        "a lantern",
        "a jar and a small candle",
        "The little light showed everybody the way home",
    ),
    (
        "There were puddles everywhere after the rain",
        "a boat",
        "a leaf and a twig",
        "The little boat sailed from puddle to puddle",
    ),
)

SEEDS: tuple[tuple[str, str], ...] = (
    ("sunflower", "a sunflower as tall as a house"),
    ("pumpkin", "a pumpkin as round as the moon"),
    ("apple", "a little tree with one red apple"),
    ("bean", "a bean plant that climbed up to the roof"),
    ("rose", "a red rose that smelled like summer"),
    ("carrot", "the biggest carrot in the village"),
)

GIFTS: tuple[tuple[str, str], ...] = (
    ("a card with a big red heart", "drew"),
    ("a necklace of shells", "made"),
    ("a cake with seven candles", "baked"),
    ("a song about the sea", "wrote"),
    ("a small wooden bird", "carved"),
    ("a crown of yellow flowers", "made"),
    ("a warm blue scarf", "knitted"),
    ("a picture of the whole family", "painted"),
)

FOUND: tuple[tuple[str, str, str], ...] = (
    ("an old map", "under a stone", "It showed a path to a tree full of golden pears"),
    ("a small wooden box", "in a hollow tree", "Inside was a music box that played a slow waltz"),
    ("a tiny door", "in the trunk of an oak", "Behind it was a room with a fire and two small chairs"),
    ("a bottle with a letter in it", "on the sand", 'The letter said, "Whoever finds this is my friend"'),
    ("a silver key", "in the grass", "It opened the gate of a secret garden full of roses"),
    ("a round blue egg", "in the moss", "The egg cracked, and out came a tiny blue bird"),
    ("a stone that glowed", "by the stream", "It was warm, and it hummed when the moon was out"),
    ("a path of white pebbles", "behind the barn", "It led to a pond that nobody had ever seen"),
)

PROVERBS = (
    "A friend in need is a friend indeed.|Actions speak louder than words.|All that glitters is not gold.|"
    "All is well that ends well.|An apple a day keeps the doctor away.|Better late than never.|"
    "Birds of a feather flock together.|Every cloud has a silver lining.|Good things come to those who wait.|"
    "Haste makes waste.|Home is where the heart is.|Honesty is the best policy.|Look before you leap.|"
    "Many hands make light work.|No news is good news.|Practice makes perfect.|Rome was not built in a day.|"
    "Slow and steady wins the race.|The early bird catches the worm.|Two heads are better than one.|"
    "When the cat is away, the mice will play.|Where there is a will, there is a way.|"
    "You cannot judge a book by its cover.|The quick brown fox jumps over the lazy dog.|"
    "To be, or not to be, that is the question.|A journey of a thousand miles begins with a single step.|"
    "Hello, world! It is a good day to be a small program.|Knowledge is power.|Time flies like an arrow.|"
    "A picture is worth a thousand words.|Still waters run deep.|Great oaks from little acorns grow."
).split("|")

RHYMES = (
    "Twinkle, twinkle, little star,\nHow I wonder what you are!\nUp above the world so high,\n"
    "Like a diamond in the sky.",
    "Row, row, row your boat,\nGently down the stream.\nMerrily, merrily, merrily, merrily,\nLife is but a dream.",
    "Mary had a little lamb,\nIts fleece was white as snow;\nAnd everywhere that Mary went\nThe lamb was sure to go.",
    "Humpty Dumpty sat on a wall,\nHumpty Dumpty had a great fall.\nAll the king's horses and all the king's men\n"
    "Couldn't put Humpty together again.",
    "Jack and Jill went up the hill\nTo fetch a pail of water.\nJack fell down and broke his crown,\n"
    "And Jill came tumbling after.",
)
