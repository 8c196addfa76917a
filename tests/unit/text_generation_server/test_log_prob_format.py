"""Log-probabilities by text: nothing is lost or doubled when ids share a text, and JSON can hold every value."""

import json
import math

import msgspec

from kilotron.text_generation_server.log_prob_format import CompletionScores, TokenSpeller, chat_logprobs
from kilotron.tokenization import ByteTokenizer

SPELLER = TokenSpeller(ByteTokenizer(), as_ids=False)
LEFT, RIGHT = 0xC3, 0xA9  # the two bytes of é; alone both are shown as U+FFFD


def test_of_two_ids_with_one_text_the_likelier_counts() -> None:
    assert SPELLER.by_text({LEFT: -1.0, RIGHT: -2.0}, RIGHT, -2.0, 2) == {"\ufffd": -1.0}
    assert SPELLER.by_text({LEFT: -2.0, 65: -1.0}, RIGHT, -3.0, 2) == {"A": -1.0, "\ufffd": -2.0}


def test_the_chosen_token_is_there_even_if_it_was_unlikely() -> None:
    assert SPELLER.by_text({65: -0.1, 66: -3.0, 67: -4.0}, 67, -4.0, 2) == {"A": -0.1, "B": -3.0, "C": -4.0}
    assert SPELLER.by_text({65: -0.1, 66: -3.0}, 65, -0.1, 1) == {"A": -0.1}


def test_offsets_are_those_of_whole_characters() -> None:
    scores = CompletionScores(SPELLER, ByteTokenizer().create_detokenizer(()), 0)
    first = scores.take([65, LEFT], [None, -1.0], None)
    second = scores.take([RIGHT, 66], [-1.0, -1.0], None)
    assert first.text_offset + second.text_offset == [0, 1, 1, 2]


def test_an_impossible_token_has_a_number_that_json_knows() -> None:
    scores = CompletionScores(SPELLER, None, 1).take([65], [-math.inf], [{66: -0.5, 65: -math.inf}])
    chat = chat_logprobs(SPELLER, [65], [-math.inf], [{66: -0.5, 65: -math.inf}], 1)
    assert json.loads(msgspec.json.encode(scores))["token_logprobs"] == [-9999.0]
    assert json.loads(msgspec.json.encode(scores))["top_logprobs"] == [{"B": -0.5, "A": -9999.0}]
    assert chat.content[0].logprob == -9999.0
