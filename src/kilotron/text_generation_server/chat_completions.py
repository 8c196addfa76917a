"""POST /v1/chat/completions: one answer, or a stream of events, with one or many choices."""

import time
from collections.abc import Sequence

import msgspec
from msgspec import UNSET

from kilotron.coordinator.wire import Output
from kilotron.text_generation_server.beam_fields import add_score
from kilotron.text_generation_server.chat_prompt import ChatPrompts, Conversation
from kilotron.text_generation_server.chat_request import ChatRequest
from kilotron.text_generation_server.event_stream import EventStream
from kilotron.text_generation_server.generation_call import GenerationCall
from kilotron.text_generation_server.http_exchange import (
    Headers,
    Receive,
    Scope,
    Send,
    read_body,
    send_json,
    warning_headers,
)
from kilotron.text_generation_server.log_prob_format import TokenSpeller, chat_logprobs, prompt_logprobs
from kilotron.text_generation_server.request_admission import (
    AdmittedPrompt,
    Caller,
    PromptOptions,
    admit,
    cache_salt_of,
)
from kilotron.text_generation_server.request_schema import parse_request
from kilotron.text_generation_server.response_types import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
)
from kilotron.text_generation_server.sampling_fields import sampling_params
from kilotron.text_generation_server.server_state import ServerState
from kilotron.text_generation_server.usage_count import UsageCount

_encode = msgspec.json.Encoder().encode


class ChatCompletionsEndpoint:
    """The ASGI endpoint."""

    def __init__(self, state: ServerState, prompts: ChatPrompts) -> None:
        self._state = state
        self._prompts = prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = self._state
        body = await read_body(receive)
        state.gate.check()
        request, warnings = parse_request(body, ChatRequest, allow_unknown_fields=state.config.allow_unknown_fields)
        state.check_model(request.model)
        request.check_ids(state.facts.vocab_size)
        request.check_width(state.facts.max_requests)
        answer = ChatAnswer(state, request, await self._admit(request, scope))
        call = GenerationCall(state.client, [answer.prompt.submission])
        headers = warning_headers(warnings)
        if request.stream:
            await _stream(call, answer, send, headers)
            return
        async with call:
            outputs = await call.collect()
        await send_json(send, answer.whole(outputs[0]), headers)

    async def _admit(self, request: ChatRequest, scope: Scope) -> AdmittedPrompt:
        state = self._state
        caller = Caller.of(scope, state, request.timeout)
        params = sampling_params(
            request,
            state.facts,
            num_logprobs=request.num_logprobs,
            has_prompt_scores=request.prompt_logprobs is not None,
            is_piecewise=bool(request.stream),
        )
        conversation = Conversation(
            messages=request.conversation(),
            has_generation_prompt=request.has_generation_prompt,
            is_continuation=request.is_continuation,
            documents=request.documents,
            variables=request.template_variables,
        )
        ids = await self._prompts.encode(conversation, add_special_tokens=bool(request.add_special_tokens))
        options = PromptOptions(
            params=params,
            default_max_tokens=None,
            add_special_tokens=False,
            truncate_to=request.truncate_prompt_tokens,
            cache_salt=cache_salt_of(state, request, caller.owner),
        )
        return (await admit(state, [ids], options, caller, path="messages"))[0]


async def _stream(call: GenerationCall, answer: "ChatAnswer", send: Send, headers: Headers) -> None:
    async with EventStream(send, headers) as events:
        async with call:
            async for _, outputs in call:
                chunks = answer.chunks(outputs)
                if chunks:
                    await events.put(chunks)
        await events.finish(answer.last_chunk())


class ChatAnswer:
    """Makes OpenAI's answer of the engines' output.

    Args:
        state: the server's.
        request: what was asked.
        prompt: what it became.
    """

    def __init__(self, state: ServerState, request: ChatRequest, prompt: AdmittedPrompt) -> None:
        self.prompt = prompt
        self._request = request
        self._speller = TokenSpeller(state.tokenizer, as_ids=bool(request.return_tokens_as_token_ids))
        self._echoed = request.conversation()[-1]["content"] if request.echo else ""
        self._usage = UsageCount([prompt.submission.num_input_tokens])
        self._head = ChatCompletion(
            id=f"chatcmpl-{prompt.submission.request_id}",
            created=int(time.time()),
            model=state.model_name,
            system_fingerprint=state.fingerprint,
            choices=[],
            usage=self._usage.read(),
        )
        chunk = ChatChunk(
            id=self._head.id,
            created=self._head.created,
            model=self._head.model,
            system_fingerprint=self._head.system_fingerprint,
            choices=[],
        )
        # A chunk is the head up to its choices, the choices, and the rest.
        self._prefix = b"data: " + _encode(chunk).partition(b'"choices":[')[0] + b'"choices":['
        self._suffix = b'],"usage":null}\n\n' if request.wants_usage else b"]}\n\n"
        self._has_begun: set[int] = set()

    def whole(self, outputs: Sequence[Output]) -> ChatCompletion:
        """The answer to a call that does not stream."""
        self._usage.add(0, outputs)
        request, result = self._request, self._head
        for output in outputs:
            choice = ChatChoice(
                index=output.choice,
                message=ChatMessage("assistant", self._echoed + output.text),
                logprobs=self._logprobs(output),
                token_ids=output.token_ids if request.return_token_ids else UNSET,
            )
            if output.finish is not None:
                choice.finish_reason, choice.stop_reason = output.finish.reason, output.finish.stop_reason
                add_score(choice, output.finish)
            result.choices.append(choice)
        result.usage = self._usage.read()
        if request.return_token_ids:
            result.prompt_token_ids = self.prompt.submission.prompt_tokens
        finish = outputs[0].finish
        if request.prompt_logprobs is not None and finish is not None:
            result.prompt_logprobs = prompt_logprobs(
                self._speller,
                self.prompt.submission.prompt_tokens,
                finish.prompt_log_probs or [],
                finish.prompt_top_n,
                request.prompt_logprobs,
            )
        return result

    def chunks(self, outputs: Sequence[Output]) -> bytes:
        """The events for new output: a role before the first, a finish reason after the last of each choice."""
        self._usage.add(0, outputs)
        request = self._request
        suffix = self._suffix
        if request.wants_running_usage:
            suffix = b'],"usage":' + _encode(self._usage.read()) + b"}\n\n"
        choices = []
        for output in outputs:
            if output.choice not in self._has_begun:
                self._has_begun.add(output.choice)
                delta = ChatDelta(role="assistant", content=self._echoed)
                choices.append(ChatChunkChoice(index=output.choice, delta=delta))
            if output.text or output.log_probs or request.return_token_ids:
                choices.append(
                    ChatChunkChoice(
                        index=output.choice,
                        delta=ChatDelta(content=output.text),
                        logprobs=self._logprobs(output),
                        token_ids=output.token_ids if request.return_token_ids else UNSET,
                    )
                )
            if output.finish is not None:
                choices.append(
                    ChatChunkChoice(
                        index=output.choice,
                        delta=ChatDelta(),
                        finish_reason=output.finish.reason,
                        stop_reason=output.finish.stop_reason,
                    )
                )
        return b"".join([self._prefix + _encode(choice) + suffix for choice in choices])

    def last_chunk(self) -> bytes:
        """The event that has the usage and no choice, if it was asked for."""
        if not self._request.wants_usage:
            return b""
        return self._prefix + b'],"usage":' + _encode(self._usage.read()) + b"}\n\n"

    def _logprobs(self, output: Output) -> ChatLogprobs | None:
        num_wanted = self._request.num_logprobs
        if num_wanted is None:
            return None
        return chat_logprobs(self._speller, output.token_ids, output.log_probs or [], output.top_n, num_wanted)
