"""POST /tokenize and /detokenize, GET /tokenizer_info: the server's tokenizer for clients that count tokens."""

import asyncio
from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from kilotron.text_generation_server.chat_prompt import ChatPrompts, Conversation
from kilotron.text_generation_server.chat_request import MAX_MESSAGES, Message, checked_messages
from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.json_response import json_response, read_struct
from kilotron.text_generation_server.sampling_fields import TokenId
from kilotron.text_generation_server.server_state import ServerState
from kilotron.text_generation_server.text_encoding import encode_text
from kilotron.tokenization.tokenizer import Tokenizer


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool | None = None
    """Default: true for a text, false for a conversation."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool = False


class TokenizeResponse(msgspec.Struct, kw_only=True):
    """Ids and their number."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Ids."""

    model: str | None = None
    tokens: list[TokenId]


class DetokenizeResponse(msgspec.Struct):
    """Their text, special tokens included."""

    prompt: str


class TokenizerInfo(msgspec.Struct):
    """What clients that build prompts themselves need."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None
    vocab_size: int


class TokenizeEndpoints:
    """The tokenizer over HTTP."""

    def __init__(self, state: ServerState, prompts: ChatPrompts) -> None:
        self._state = state
        self._prompts = prompts

    async def tokenize(self, request: Request) -> Response:
        """Text or conversation to ids."""
        body = await read_struct(request, TokenizeRequest)
        self._state.check_model(body.model)
        tokenizer = self._tokenizer()
        ids = await self._encode(body, tokenizer)
        return json_response(
            TokenizeResponse(
                count=len(ids),
                max_model_len=self._state.facts.max_sequence_length,
                tokens=ids,
                token_strs=[tokenizer.token_text(token_id) for token_id in ids] if body.return_token_strs else None,
            )
        )

    async def detokenize(self, request: Request) -> Response:
        """Ids to text."""
        body = await read_struct(request, DetokenizeRequest)
        self._state.check_model(body.model)
        vocab_size = self._state.facts.vocab_size
        if body.tokens and max(body.tokens) >= vocab_size:
            message = f"tokens: token id {max(body.tokens)} is outside the vocabulary (0 to {vocab_size - 1})"
            raise HttpError(400, message, param="tokens", code="invalid_value")
        text = await asyncio.to_thread(self._tokenizer().detokenize, body.tokens, skip_special_tokens=False)
        return json_response(DetokenizeResponse(text))

    async def show_info(self, request: Request) -> Response:
        """Special tokens and chat template."""
        tokenizer = self._tokenizer()
        template = tokenizer.chat_template
        return json_response(
            TokenizerInfo(
                bos_token=_spell(tokenizer, tokenizer.bos_id),
                eos_token=_spell(tokenizer, tokenizer.eos_id),
                pad_token=_spell(tokenizer, tokenizer.pad_id),
                chat_template=None if template is None else template.templates.get("default"),
                vocab_size=self._state.facts.vocab_size,
            )
        )

    async def _encode(self, body: TokenizeRequest, tokenizer: Tokenizer) -> list[int]:
        if (body.prompt is None) == (body.messages is None):
            raise HttpError(400, "give either prompt or messages", param="prompt", code="missing_parameter")
        if body.prompt is not None:
            adds = body.add_special_tokens is not False
            encode = partial(tokenizer.tokenize, add_special_tokens=adds)
            return await encode_text(self._state, body.prompt, encode, place="prompt")
        conversation = Conversation(
            messages=checked_messages(body.messages or []),
            has_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
            is_continuation=body.continue_final_message,
            variables={},
        )
        return await self._prompts.encode(conversation, add_special_tokens=bool(body.add_special_tokens))

    def _tokenizer(self) -> Tokenizer:
        if self._state.tokenizer is None:
            raise HttpError(400, "this model has no tokenizer; send token ids", code="unsupported_parameter")
        return self._state.tokenizer


def _spell(tokenizer: Tokenizer, token_id: int | None) -> str | None:
    return None if token_id is None else tokenizer.token_text(token_id)
