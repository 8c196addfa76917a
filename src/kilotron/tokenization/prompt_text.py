"""How the text of a prompt becomes token ids, the same beside a model and in a front end without one."""

from kilotron.errors import InvalidRequestError
from kilotron.tokenization.tokenizer import Tokenizer


class PlainPromptTokenizer:
    """Makes ids of prompts where no controller does.

    Args:
        tokenizer: None where prompts must be ids.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.tokenizer = tokenizer

    def tokenize_prompt(self, prompt: str, *, add_BOS: bool = False) -> list[int]:  # noqa: N803 - Megatron's spelling
        """See `tokenize_prompt`."""
        return tokenize_prompt(self.tokenizer, prompt, add_BOS=add_BOS)


def tokenize_prompt(tokenizer: Tokenizer | None, prompt: str, *, add_BOS: bool) -> list[int]:  # noqa: N803
    """Text to ids; `add_BOS` puts the begin-of-sequence id in front unless it is there.

    Raises:
        InvalidRequestError: there is no tokenizer, or `add_BOS` is asked of one without such an id.
    """
    if tokenizer is None:
        raise InvalidRequestError("this engine has no tokenizer, so prompts must be token ids")
    ids = tokenizer.tokenize(prompt)
    if add_BOS:
        if tokenizer.bos_id is None:
            raise InvalidRequestError("add_BOS=True, but the tokenizer has no begin-of-sequence token")
        if ids[:1] != [tokenizer.bos_id]:
            ids = [tokenizer.bos_id, *ids]
    return ids
