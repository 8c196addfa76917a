"""Line breaks as token ids, found by asking the tokenizer how it spells them. No id is written down here."""

from kilotron.tokenization.tokenizer import Tokenizer

_COLONS = (":", " :", "a:", "a: b", "a :b")
_LINE_BREAKS = ("\n", "\n\n", "\n\n\n", "a\n", "a\nb", "a\n\n", "a\n\nb", ": \n", ". \n")
_BOTH = (":\n", "a:\n", "a:\n\n", " :\n")


def newline_after_colon_ids(tokenizer: Tokenizer) -> set[tuple[int, ...]]:
    """Sequences of ids that would put a line break right after a colon: pairs, and single ids that hold both."""
    ids = {text: tokenizer.tokenize(text, add_special_tokens=False) for text in (*_COLONS, *_LINE_BREAKS, *_BOTH)}
    texts = {token_id: tokenizer.token_text(token_id) for tokens in ids.values() for token_id in tokens}
    colons = [token_id for token_id, text in texts.items() if text.endswith(":")]
    line_breaks = [token_id for token_id, text in texts.items() if text.startswith("\n")]
    both = [token_id for token_id, text in texts.items() if ":\n" in text]
    return {(colon, line_break) for colon in colons for line_break in line_breaks} | {(token_id,) for token_id in both}
