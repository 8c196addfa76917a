"""Line breaks after colons, as token ids of whatever tokenizer there is."""

from fakes import ScriptedWrapper, make_scripted_engine, write_out
from kilotron.apis.assembly import BUNDLED_MODEL
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization import ByteTokenizer, load_tokenizer
from kilotron.tokenization.line_breaks import newline_after_colon_ids


def test_a_byte_tokenizer_has_one_pair() -> None:
    assert newline_after_colon_ids(ByteTokenizer()) == {(ord(":"), ord("\n"))}


def test_every_sequence_puts_a_line_break_after_a_colon() -> None:
    tokenizer = load_tokenizer(BUNDLED_MODEL)
    found = newline_after_colon_ids(tokenizer)
    assert found
    for ids in found:
        assert ":\n" in "".join(tokenizer.token_text(token_id) for token_id in ids)


def test_no_line_break_follows_a_colon_where_that_is_forbidden() -> None:
    engine = make_scripted_engine(ScriptedWrapper(write_out("a:\nb\nc", prompt_length=2)))
    params = SamplingParams(temperature=0.0, max_tokens=6)
    assert engine.generate(["x"], params)[0].generated_text == "a:\nb\nc"
    forbidden = params.add_attributes({"prevent_newline_after_colon": True})
    tokens = engine.generate(["x"], forbidden)[0].generated_tokens
    assert tokens[2] != ord("\n")
    assert bytes([*tokens[:2], *tokens[3:]]) == b"a:b\nc"
