"""Batch inference with the calls of Megatron's documentation: wrapper, controller, engine, parameters."""

import argparse
import asyncio

import kilotron
from kilotron import CommonInferenceParams, GPTInferenceWrapper, MCoreEngine, SimpleTextGenerationController

PROMPTS = ["Once upon a time", "The little cat", "What is the capital of France?"]


def make_engine(checkpoint: str | None, max_batch_size: int) -> MCoreEngine:
    model, tokenizer = kilotron.load_model(checkpoint)
    wrapped = GPTInferenceWrapper(model)
    controller = SimpleTextGenerationController(inference_wrapped_model=wrapped, tokenizer=tokenizer)
    return MCoreEngine(text_generation_controller=controller, max_batch_size=max_batch_size, random_seed=1234)


async def stream(engine: MCoreEngine, prompt: str, params: CommonInferenceParams) -> None:
    """Prints a text as it grows; whatever else was added runs in the same batch."""
    request_id = engine.add_request(prompt, sampling_params=params, streaming=True)
    run = asyncio.create_task(engine.run_engine_async())
    num_shown = 0
    async for snapshot in engine.get_stream_generator(request_id):
        print(snapshot.generated_text[num_shown:], end="", flush=True)
        num_shown = len(snapshot.generated_text)
    await run
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="checkpoint folder or hub id; left out: the bundled tiny model")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--num-tokens-to-generate", type=int, default=30)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--max-batch-size", type=int, default=4)
    args = parser.parse_args()

    engine = make_engine(args.model, args.max_batch_size)
    params = CommonInferenceParams(
        temperature=args.temperature,
        top_p=args.top_p,
        return_log_probs=True,
        num_tokens_to_generate=args.num_tokens_to_generate,
    )
    params.add_attributes({"min_length": 4})
    for result in engine.generate(prompts=args.prompts, common_inference_params=params):
        mean = sum(result.generated_log_probs) / result.generated_length
        print(f"request {result.request_id} ({result.status.name}, mean log-probability {mean:.2f})")
        print(f"  {result.prompt!r} -> {result.generated_text!r}")
    print(f"streaming {args.prompts[0]!r}: ", end="")
    asyncio.run(stream(engine, args.prompts[0], params))


if __name__ == "__main__":
    main()
