"""A model without an engine, and the engines that people build around it."""

import kilotron
from kilotron import MegatronLLM, SamplingParams


def test_a_loaded_model_gives_what_megatron_llm_gives() -> None:
    model, tokenizer = kilotron.load_model(dtype="float32")
    controller = kilotron.SimpleTextGenerationController(
        inference_wrapped_model=kilotron.GPTInferenceWrapper(model), tokenizer=tokenizer
    )
    engine = kilotron.MCoreEngine(text_generation_controller=controller, max_batch_size=2)
    params = SamplingParams(temperature=0.0, num_tokens_to_generate=24)
    prompts = ["Once upon a time", "The cat"]
    with MegatronLLM(dtype="float32") as llm:
        assert engine.loop.intake.limits.eos_ids == llm.engine.intake.limits.eos_ids
        expected = llm.generate(prompts, params)
    assert [one.generated_text for one in engine.generate(prompts, params)] == [one.generated_text for one in expected]


def test_every_public_name_can_be_imported() -> None:
    for name in kilotron.__all__:
        assert getattr(kilotron, name) is not None
