"""POST /v1/completions: one answer, or a stream of events, for one or many prompts."""

import time
from collections.abc import Sequence

import msgspec

from kilotron.coordinator.wire import Output
from kilotron.text_generation_server.beam_fields import add_score
from kilotron.text_generation_server.completion_request import DEFAULT_MAX_TOKENS, CompletionRequest
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
from kilotron.text_generation_server.log_prob_format import CompletionScores, TokenSpeller, prompt_logprobs
from kilotron.text_generation_server.request_admission import (
    AdmittedPrompt,
    Caller,
    PromptOptions,
    admit,
    cache_salt_of,
)
from kilotron.text_generation_server.request_schema import parse_request
from kilotron.text_generation_server.response_types import Completion, CompletionChoice, CompletionLogprobs
from kilotron.text_generation_server.sampling_fields import sampling_params
from kilotron.text_generation_server.server_state import ServerState
from kilotron.text_generation_server.usage_count import UsageCount

_encode = msgspec.json.Encoder().encode


class CompletionsEndpoint:
    """The ASGI endpoint."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = self._state
        body = await read_body(receive)
        state.gate.check()
        request, warnings = parse_request(
            body, CompletionRequest, allow_unknown_fields=state.config.allow_unknown_fields
        )
        state.check_model(request.model)
        request.check_ids(state.facts.vocab_size)
        request.check_width(state.facts.max_requests)
        answer = CompletionAnswer(state, request, await _admit(state, request, scope))
        call = GenerationCall(state.client, [prompt.submission for prompt in answer.prompts])
        headers = warning_headers(warnings)
        if request.stream:
            await _stream(call, answer, send, headers)
            return
        async with call:
            outputs = await call.collect()
        await send_json(send, answer.whole(outputs), headers)


async def _admit(state: ServerState, request: CompletionRequest, scope: Scope) -> list[AdmittedPrompt]:
    caller = Caller.of(scope, state, request.timeout)
    has_prompt_scores = request.prompt_logprobs is not None or (bool(request.echo) and request.logprobs is not None)
    params = sampling_params(
        request,
        state.facts,
        num_logprobs=request.logprobs,
        has_prompt_scores=has_prompt_scores,
        # The prompt's scores come with the end of the output, and stand in front of it.
        is_piecewise=bool(request.stream) and not has_prompt_scores,
    )
    options = PromptOptions(
        params=params,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        add_special_tokens=request.add_special_tokens is not False,
        truncate_to=request.truncate_prompt_tokens,
        cache_salt=cache_salt_of(state, request, caller.owner),
    )
    return await admit(state, list(request.prompts), options, caller, encoder_prompts=request.encoder_prompts)


async def _stream(call: GenerationCall, answer: "CompletionAnswer", send: Send, headers: Headers) -> None:
    async with EventStream(send, headers) as events:
        async with call:
            async for index, outputs in call:
                chunks = answer.chunks(index, outputs)
                if chunks:
                    await events.put(chunks)
        await events.finish(answer.last_chunk())


class CompletionAnswer:
    """Makes OpenAI's answer of the engines' output.

    Args:
        state: the server's.
        request: what was asked.
        prompts: what it became, in order.
    """

    def __init__(self, state: ServerState, request: CompletionRequest, prompts: list[AdmittedPrompt]) -> None:
        self.prompts = prompts
        self._request = request
        self._tokenizer = state.tokenizer
        self._speller = TokenSpeller(state.tokenizer, as_ids=bool(request.return_tokens_as_token_ids))
        self._head = Completion(
            id=f"cmpl-{prompts[0].submission.request_id}",
            created=int(time.time()),
            model=state.model_name,
            system_fingerprint=state.fingerprint,
            choices=[],
        )
        # A chunk is the head up to its choices, the choices, and the rest.
        self._prefix = b"data: " + _encode(self._head).partition(b'"choices":[')[0] + b'"choices":['
        self._suffix = b'],"usage":null}\n\n' if request.wants_usage else b"]}\n\n"
        self._usage = UsageCount([prompt.submission.num_input_tokens for prompt in prompts])
        self._scores: dict[int, CompletionScores] = {}
        self._has_begun: set[int] = set()

    def whole(self, outputs: Sequence[Sequence[Output]]) -> Completion:
        """The answer to a call that does not stream."""
        choices = []
        for index, of_prompt in enumerate(outputs):
            self._usage.add(index, of_prompt)
            choices += [self._choice(index, output) for output in of_prompt]
        return msgspec.structs.replace(self._head, choices=choices, usage=self._usage.read())

    def chunks(self, index: int, outputs: Sequence[Output]) -> bytes:
        """The events for new output of prompt `index`."""
        self._usage.add(index, outputs)
        request = self._request
        suffix = self._suffix
        if request.wants_running_usage:
            suffix = b'],"usage":' + _encode(self._usage.read()) + b"}\n\n"
        events = b""
        for output in outputs:
            if output.text or output.finish is not None or output.log_probs is not None or request.return_token_ids:
                events += self._prefix + _encode(self._choice(index, output)) + suffix
        return events

    def last_chunk(self) -> bytes:
        """The event that has the usage and no choice, if it was asked for."""
        if not self._request.wants_usage:
            return b""
        return self._prefix + b'],"usage":' + _encode(self._usage.read()) + b"}\n\n"

    def _choice(self, index: int, output: Output) -> CompletionChoice:
        """A piece of a continuation, or all of it."""
        request = self._request
        number = index * request.num_choices + output.choice
        choice = CompletionChoice(index=number, text=output.text)
        is_first = number not in self._has_begun
        if is_first:
            self._has_begun.add(number)
            if request.echo:
                choice.text = self._prompt_text(index) + output.text
        if request.logprobs is not None:
            choice.logprobs = self._logprobs(index, number, output, has_prompt=is_first and bool(request.echo))
        if request.return_token_ids:
            choice.token_ids = output.token_ids
            if is_first:
                choice.prompt_token_ids = self.prompts[index].submission.prompt_tokens
        finish = output.finish
        if finish is not None:
            choice.finish_reason, choice.stop_reason = finish.reason, finish.stop_reason
            add_score(choice, finish)
            if request.prompt_logprobs is not None:
                choice.prompt_logprobs = prompt_logprobs(
                    self._speller,
                    self.prompts[index].submission.prompt_tokens,
                    finish.prompt_log_probs or [],
                    finish.prompt_top_n,
                    request.prompt_logprobs,
                )
        return choice

    def _logprobs(self, index: int, number: int, output: Output, *, has_prompt: bool) -> CompletionLogprobs:
        if number not in self._scores:
            places = None
            if self._tokenizer is not None:
                skips = self._request.skip_special_tokens is not False
                places = self._tokenizer.create_detokenizer((), skip_special_tokens=skips)
            self._scores[number] = CompletionScores(self._speller, places, self._request.logprobs or 0)
        scores = self._scores[number]
        token_ids: list[int] = output.token_ids
        log_probs: list[float | None] = list(output.log_probs or [])
        top_n: list[dict[int, float] | None] | None = None if output.top_n is None else list(output.top_n)
        finish = output.finish
        if has_prompt and finish is not None:
            token_ids = self.prompts[index].submission.prompt_tokens + token_ids
            log_probs = [None, *(finish.prompt_log_probs or []), *log_probs]
            if finish.prompt_top_n is not None:
                top_n = [None, *finish.prompt_top_n, *(top_n or [])]
        return scores.take(token_ids, log_probs, top_n)

    def _prompt_text(self, index: int) -> str:
        prompt = self.prompts[index]
        if prompt.text is not None or self._tokenizer is None:
            return prompt.text or ""
        skips = self._request.skip_special_tokens is not False
        return self._tokenizer.detokenize(prompt.submission.prompt_tokens, skip_special_tokens=skips)
