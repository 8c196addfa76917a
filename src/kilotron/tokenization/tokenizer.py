"""What every tokenizer offers, and the parts of it that are the same for all.

Knows no file format and no library.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from kilotron.errors import ChatTemplateError
from kilotron.tokenization.chat_template import ChatTemplate
from kilotron.tokenization.incremental_detokenizer import IncrementalDetokenizer


class Tokenizer(Protocol):
    """Text to token ids and back. Instances are immutable and may be shared between threads.

    Ids the tokenizer does not know (such as the padding rows of a vocabulary) have no text; they are not an error.
    """

    vocab_size: int  # one more than the highest id, added tokens included
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    chat_template: ChatTemplate | None

    @property
    def bos(self) -> int | None:
        """Megatron's name of `bos_id`."""
        return self.bos_id

    @property
    def eod(self) -> int | None:
        """Megatron's name of `eos_id`."""
        return self.eos_id

    def tokenize(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Encodes text.

        Args:
            text: The text.
            add_special_tokens: Add what the tokenizer puts around a text (usually a beginning-of-sequence token).
            parse_special: Let the spelling of a special token in the text become that token. With `False` the text
                is only text and cannot forge one.

        Raises:
            InvalidRequestError: the text cannot be encoded, for instance because it holds a lone surrogate.
        """
        ...

    def detokenize(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Decodes ids; bytes that are not UTF-8 become U+FFFD."""
        stream = self.create_detokenizer((), skip_special_tokens=skip_special_tokens)
        return stream.put_many(ids) + stream.flush()

    def token_text(self, token_id: int) -> str:
        """One id's text, special tokens and leading blanks included; part of a character shows as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes an id stands for inside a text; a special token's are its spelling."""
        ...

    def special_ids(self) -> frozenset[int]:
        """The ids that `skip_special_tokens` leaves out."""
        ...

    def offsets(self, ids: Sequence[int], text: str) -> list[int]:
        """Where each token starts in the text.

        Args:
            ids: Token ids.
            text: Their text, with or without special tokens.

        Returns:
            For each id the index of the character its first byte belongs to, `len(text)` at most.
        """
        skip = self.detokenize(ids) == text
        stream = self.create_detokenizer((), skip_special_tokens=skip)
        starts, end = [], 0
        for token_id in ids:
            starts.append(min(end, len(text)))
            end += len(stream.put(token_id))
        return starts

    def create_detokenizer(
        self, prompt_ids: Sequence[int], *, skip_special_tokens: bool = True
    ) -> IncrementalDetokenizer:
        """Starts decoding a generated sequence that follows `prompt_ids`."""
        ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        **variables: object,
    ) -> str:
        """Writes a conversation the way the model was trained to read it.

        Encode the result with `add_special_tokens=False`: the template writes the special tokens itself.

        Args:
            messages: The conversation, each message a mapping with `role` and `content`.
            add_generation_prompt: End with the beginning of an assistant message.
            tools: JSON schemas of the functions the model may call.
            **variables: Further arguments of `ChatTemplate.render`, or variables of the template itself.

        Raises:
            ChatTemplateError: there is no template, or it failed or refused the messages.
        """
        if self.chat_template is None:
            raise ChatTemplateError(
                "this model has no chat template: put a chat_template.jinja next to its tokenizer files, "
                "or send a plain prompt instead of messages"
            )
        # `variables` may name `render`'s own options too; it checks their types itself.
        return self.chat_template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            **variables,  # type: ignore[arg-type]
        )
