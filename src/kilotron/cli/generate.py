"""`kilotron generate`: continues one prompt or many."""

import sys
from typing import TYPE_CHECKING, Annotated

from kilotron.cli.answer_stream import stream_text
from kilotron.cli.failures import EXIT_FAILED, print_error
from kilotron.cli.loaded_model import LoadedModel, check_model_name, open_model
from kilotron.cli.options import (
    BEAMS,
    ENGINE,
    OUTPUT_GROUP,
    PROMPT_GROUP,
    PROMPTS,
    RUN,
    SAMPLING,
    BeamOptions,
    EngineOptions,
    Model,
    PromptOptions,
    RunOptions,
    SamplingOptions,
    flag,
    switch,
)
from kilotron.cli.output import dim, print_json
from kilotron.cli.prompt_sources import PromptSource, read_prompts
from kilotron.cli.ready_prompts import ReadyPrompt, make_ready, naming_prompts
from kilotron.errors import SamplingParamsError
from kilotron.sampling_params import SamplingParams

if TYPE_CHECKING:
    from kilotron.inference_request import InferenceRequest


def generate(
    model: Model = None,
    /,
    *,
    prompts: PromptOptions = PROMPTS,
    chat: Annotated[
        bool, switch("Each prompt is what a user says: write it with the model's chat template.", group=PROMPT_GROUP)
    ] = False,
    json: Annotated[
        bool, switch("One JSON object per prompt: text, token ids, finish reason, timings.", group=OUTPUT_GROUP)
    ] = False,
    echo: Annotated[bool, flag("Print the prompt before its continuation.", group=OUTPUT_GROUP)] = True,
    sampling: SamplingOptions = SAMPLING,
    beams: BeamOptions = BEAMS,
    run: RunOptions = RUN,
    engine: EngineOptions = ENGINE,
) -> int:
    """Continue one prompt or many.

    One prompt is written as it is generated; several run together and are
    written in order. Without --max-tokens an answer has 256 tokens at most.

    Try:
      kilotron generate -p "Once upon a time"
      kilotron generate ./checkpoint -p "The sky is" -p "The sea is" --json
      kilotron generate ./checkpoint --temperature 0 --max-tokens 9 -p "2 + 2 ="
      kilotron generate ./checkpoint --beam-width 4 --num-return-gen 2 -p "Once"
      kilotron generate ./megatron/iter_0001000 --tokenizer ./tokenizer -p "Once"
      kilotron generate google/flan-t5-small -p "Translate to German: Good day"
      kilotron generate Qwen/Qwen3-0.6B --prompt-file in.jsonl --json > out.jsonl
      cat story.txt | kilotron generate ./checkpoint
    """
    check_model_name(model)
    sources = read_prompts(prompts, command="generate")
    asked = sampling.given(beams)
    with open_model(model, engine, run) as loaded:
        ready = [_prepare(loaded, source, asked, is_chat=chat) for source in sources]
        with naming_prompts(loaded.llm, ready):
            if len(ready) == 1 and not json and _has_one_answer(ready[0].params):
                _stream(loaded, ready[0], echo=echo)
                return 0
            return _generate_all(loaded, ready, is_json=json, echo=echo)


def _prepare(loaded: LoadedModel, source: PromptSource, asked: dict[str, object], *, is_chat: bool) -> ReadyPrompt:
    try:
        params = loaded.sampling_params(asked, source.sampling)
    except SamplingParamsError as error:
        raise SamplingParamsError(f"{source.where}: {error}") from error
    return make_ready(loaded.llm, source, params, is_chat=is_chat)


def _stream(loaded: LoadedModel, prompt: ReadyPrompt, *, echo: bool) -> None:
    engine, out = loaded.llm.engine, sys.stdout
    request = engine.build_streaming(prompt.prompt, prompt.params)
    pieces = stream_text(engine, request)
    try:
        out.write(dim(prompt.shown, out) if echo else "")
        out.flush()
        for piece in pieces:
            loaded.mark("first token")
            out.write(piece)
            out.flush()
        if loaded.llm.tokenizer is None:
            out.write(_text_of(request, loaded))
        loaded.mark("the rest")
    finally:
        out.write("\n")
        out.flush()
    loaded.tell_times()


def _generate_all(loaded: LoadedModel, prompts: list[ReadyPrompt], *, is_json: bool, echo: bool) -> int:
    from kilotron.cli.result_json import describe_request

    llm = loaded.llm
    inputs, params = [prompt.prompt for prompt in prompts], [prompt.params for prompt in prompts]
    requests = llm.generate(inputs, params, show_progress=loaded.run.progress)
    loaded.mark("generation")
    exit_code = 0
    for index, (prompt, request) in enumerate(zip(prompts, requests, strict=True), start=1):
        if is_json:
            print_json(describe_request(request, prompt.text, prompt.source.id, llm.tokenizer))
        else:
            _print_text(loaded, prompt, request, heading=f"{index} of {len(prompts)}", echo=echo)
        for choice in request.choices:
            if choice.error is not None:
                exit_code = EXIT_FAILED
                print_error(f"{prompt.source.where}: {choice.error}")
    loaded.tell_times()
    return exit_code


def _print_text(
    loaded: LoadedModel, prompt: ReadyPrompt, request: "InferenceRequest", *, heading: str, echo: bool
) -> None:
    shown = dim(prompt.shown, sys.stdout) if echo else ""
    for number, beam in enumerate(request.beams, start=1):
        print(f"=== prompt {heading}, beam {number} of {len(request.beams)}, score {beam.score:.4f} ===")
        print(shown + _as_text(beam.text, beam.token_ids, loaded))
    for choice in request.choices if not request.beams else ():
        of_many = f", continuation {choice.choice_index + 1} of {prompt.params.n}" if prompt.params.n > 1 else ""
        print(f"=== prompt {heading}{of_many} ===")
        print(shown + _text_of(choice, loaded))


def _has_one_answer(params: SamplingParams) -> bool:
    """Whether the answer can be written as it comes."""
    return params.n == 1 and not params.is_beam_search


def _text_of(request: "InferenceRequest", loaded: LoadedModel) -> str:
    return _as_text(request.generated_text, request.generated_tokens, loaded)


def _as_text(text: str, token_ids: list[int], loaded: LoadedModel) -> str:
    """The answer; its token ids where there is no tokenizer to make text of them."""
    return text if loaded.llm.tokenizer is not None else " ".join(map(str, token_ids))
