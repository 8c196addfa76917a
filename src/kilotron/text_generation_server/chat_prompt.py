"""From a conversation to token ids: the chat template in its worker, and users' text kept from forging its tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kilotron.errors import ChatTemplateError
from kilotron.text_generation_server.server_state import ServerState
from kilotron.text_generation_server.text_encoding import check_length, encode_text
from kilotron.tokenization.untrusted_text import UntrustedText, special_spellings


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What the template is given."""

    messages: Sequence[Mapping[str, Any]]
    has_generation_prompt: bool = True
    is_continuation: bool = False
    documents: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any]


class ChatPrompts:
    """Encodes conversations for one model."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._untrusted: UntrustedText | None = None

    async def encode(self, conversation: Conversation, *, add_special_tokens: bool = False) -> list[int]:
        """The ids of the prompt.

        Raises:
            ChatTemplateError: the model has no template, or it refuses the conversation.
        """
        tokenizer, renderer = self._state.tokenizer, self._state.renderer
        if tokenizer is None or renderer is None:
            raise ChatTemplateError("this model has no chat template; use /v1/completions with a plain prompt")
        if self._untrusted is None:
            self._untrusted = UntrustedText(special_spellings(tokenizer))
        num_chars = sum(len(message["content"]) for message in conversation.messages)
        await check_length(self._state, num_chars, "messages")
        shielded = self._untrusted.shield(
            conversation.messages, documents=conversation.documents, variables=conversation.variables
        )
        text = await renderer.render(
            shielded.messages,
            add_generation_prompt=conversation.has_generation_prompt,
            continue_final_message=conversation.is_continuation,
            documents=shielded.documents,
            variables=shielded.variables,
        )
        ids = await encode_text(
            self._state, text, lambda rendered: shielded.tokenize(rendered, tokenizer), place="messages"
        )
        if add_special_tokens and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids = [tokenizer.bos_id, *ids]
        return ids
