"""MegatronLLM: what people write."""

import gc
import json
import logging
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from fakes import assert_nothing_is_left, make_llm, make_model
from kilotron.apis.llm import MegatronLLM
from kilotron.config import InferenceConfig
from kilotron.errors import (
    BrokenCheckpointError,
    ChatTemplateError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    EngineClosedError,
    InvalidRequestError,
    KernelError,
    SamplingParamsError,
    TokenizerError,
    UnknownArchitectureError,
)
from kilotron.inference_request import Status
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization import ByteTokenizer
from kilotron.tokenization.chat_template import ChatTemplate
from parity.tiny_models import make_tiny_model
from unit.models.packed_matrices import gptq
from unit.models.quantized_folders import LLAMA, write_pair

GREEDY = SamplingParams(temperature=0.0, num_tokens_to_generate=6)
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot:{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]


def test_one_params_serves_all_prompts_or_each_has_its_own() -> None:
    with make_llm() as llm:
        short = SamplingParams(temperature=0.0, num_tokens_to_generate=2)
        together = llm.generate(["ab", "cd"], [GREEDY, short])
        alone = [llm.generate("ab", GREEDY)[0], llm.generate("cd", short)[0]]
    assert [r.generated_tokens for r in together] == [r.generated_tokens for r in alone]
    assert [r.generated_length for r in together] == [6, 2]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_params_is_refused(count: int) -> None:
    with make_llm() as llm, pytest.raises(SamplingParamsError, match=f"{count} sampling params for 2 prompts"):
        llm.generate(["ab", "cd"], [GREEDY] * count)


def test_results_carry_text_tokens_and_times() -> None:
    with make_llm() as llm:
        request = llm.generate("ab", GREEDY)[0]
    assert request.status == Status.COMPLETED
    assert request.generated_text == ByteTokenizer().detokenize(request.generated_tokens)
    assert request.ttft is not None
    assert request.tpot is not None
    assert 0 < request.ttft <= (request.timings.latency_s or 0)


def test_streaming_gives_the_text_of_generate() -> None:
    with make_llm() as llm:
        items = list(llm.generate_stream("ab", GREEDY))
        whole = llm.generate("ab", GREEDY)[0]
    assert "".join(item.text for item in items) == whole.generated_text


def test_chat_renders_the_template_without_further_special_tokens() -> None:
    with make_llm(tokenizer=ByteTokenizer(ChatTemplate(TEMPLATE))) as llm:
        answers = llm.chat([HELLO, [*HELLO, {"role": "bot", "content": "yes?"}]], GREEDY)
        streamed = "".join(item.text for item in llm.chat_stream(HELLO, GREEDY))
    assert bytes(answers[0].prompt_tokens) == b"user: hello\nbot:"
    assert bytes(answers[1].prompt_tokens) == b"user: hello\nbot: yes?\nbot:"
    assert streamed == answers[0].generated_text


def test_one_conversation_gives_one_answer() -> None:
    with make_llm(tokenizer=ByteTokenizer(ChatTemplate(TEMPLATE))) as llm:
        assert len(llm.chat(HELLO, GREEDY)) == 1


def test_chat_without_a_template_says_so() -> None:
    with make_llm() as llm, pytest.raises(ChatTemplateError, match="no chat template"):
        llm.chat(HELLO)


@pytest.mark.parametrize("messages", [None, [], "hello", {"role": "user"}, 5])
def test_what_is_no_conversation_is_refused(messages: Any) -> None:
    llm = make_llm(tokenizer=ByteTokenizer(ChatTemplate(TEMPLATE)))
    with llm, pytest.raises(InvalidRequestError, match="messages must be a list"):
        llm.chat(messages)


def test_score_gives_one_log_prob_per_prompt_token_but_the_first() -> None:
    with make_llm() as llm:
        request = llm.score([[1, 2, 3, 4]], top_n_logprobs=2)[0]
    assert request.generated_tokens == []
    assert len(request.prompt_log_probs or []) == len(request.prompt_top_n_ids or []) == 3
    for token_id, value, top in zip(
        [2, 3, 4], request.prompt_log_probs or [], request.prompt_top_n_ids or [], strict=True
    ):
        assert top[token_id] == value
        assert len(top) in (2, 3)


def test_scoring_a_single_token_gives_nothing_to_score() -> None:
    with make_llm() as llm:
        assert llm.score([7])[0].prompt_log_probs == []


def test_after_shutdown_it_refuses_everything() -> None:
    llm = make_llm()
    llm.shutdown()
    llm.shutdown()
    for call in (lambda: llm.generate("a"), lambda: next(llm.generate_stream("a")), lambda: llm.score("ab")):
        with pytest.raises(EngineClosedError, match="shut down"):
            call()


def test_leaving_the_block_shuts_down_also_on_an_error() -> None:
    with pytest.raises(ZeroDivisionError), make_llm() as llm:
        raise ZeroDivisionError
    with pytest.raises(EngineClosedError):
        llm.generate("a")


def test_an_interrupt_leaves_nothing_behind_and_the_next_call_works() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with make_llm() as llm:
        with pytest.raises(KeyboardInterrupt):
            llm.engine.generate(["ab", "cd"], GREEDY, on_step=interrupt)
        assert_nothing_is_left(llm.engine)
        assert llm.generate("ab", GREEDY)[0].generated_length == 6


def test_it_can_be_built_twenty_times_in_one_process_and_gives_its_memory_back() -> None:
    process, used = psutil.Process(), []
    for _ in range(20):
        # 32 MiB of cache and 5 of weights: a leak of either shows at once.
        with make_llm(make_model(vocab_size=20_000), buffer_size_gb=1 / 32) as llm:
            torch.cat([layer.keys.numbers.flatten() for layer in llm.context.storage.layers]).zero_()
            llm.generate("ab", GREEDY)
        del llm
        gc.collect()
        used.append(process.memory_info().rss)
    assert max(used[10:]) - max(used[:10]) < 16 << 20


def test_shutdown_alone_gives_the_cache_back() -> None:
    llm = make_llm(buffer_size_gb=1 / 8)
    for layer in llm.context.storage.layers:
        layer.keys.numbers.zero_()
        layer.values.numbers.zero_()
    del layer
    before = psutil.Process().memory_info().rss
    llm.shutdown()
    assert before - psutil.Process().memory_info().rss > 100 << 20


def test_options_and_config_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="not both"):
        MegatronLLM(make_model(), inference_config=InferenceConfig(), max_tokens=4)


@pytest.mark.parametrize("params", [{"max_tokens": 3}, "greedy", 5])
def test_what_is_no_sampling_params_is_refused(params: Any) -> None:
    with make_llm() as llm, pytest.raises(SamplingParamsError, match=f"not {type(params).__name__}"):
        llm.generate("ab", params)


@pytest.mark.parametrize("name", ["model", "tokenizer", "inference_config"])
def test_a_part_of_the_wrong_type_is_refused(name: str) -> None:
    wrong: dict[str, Any] = {name: 3}
    with pytest.raises(ConfigError, match=f"{name} must be .*, not int"):
        MegatronLLM(**wrong)


@pytest.mark.parametrize("eos", ["</s>", [2, "x"], 1.5, True])
def test_an_impossible_end_id_in_the_generation_config_is_refused(tmp_path: Path, eos: Any) -> None:
    make_tiny_model("llama", tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id = .*: a whole number or a list"):
        MegatronLLM(tmp_path)


WRONG_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"max_token": 4}, ConfigError, "did you mean 'max_tokens'"),
    ({"max_requests": 0}, ConfigError, "max_requests must be a whole number"),
    ({"block_size_tokens": 2.5}, ConfigError, "block_size_tokens"),
    ({"buffer_size_gb": 1e-9}, ConfigError, "at least 2 are needed"),
    ({"buffer_size_gb": -1}, ConfigError, r"buffer_size_gb must be .* above 0"),
    ({"max_sequence_length": 257}, ConfigError, "exceeds the model's 256"),
    ({"dtype": "float8"}, ConfigError, "dtype must be one of"),
    ({"dtype": "bfloat16"}, ConfigError, "the model given is in float32"),
    ({"logprobs_mode": "cooked"}, ConfigError, "logprobs_mode must be one of"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG_OPTIONS)
def test_a_wrong_option_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MegatronLLM(make_model(), **options)


def test_a_ready_model_is_not_quantized_any_more() -> None:
    with pytest.raises(ConfigError, match="quantization=int8, but the model given has its weights packed already"):
        MegatronLLM(make_model(), quantization="int8")


@pytest.mark.parametrize("options", [{"quantization": "int8"}, {"quantization": "int4", "quantization_group_size": 32}])
def test_the_bundled_model_still_knows_its_stories_when_quantized(options: dict[str, Any]) -> None:
    with MegatronLLM(num_threads=1, max_requests=4, **options) as llm:
        request = llm.generate("Once upon a", SamplingParams(temperature=0, num_tokens_to_generate=1))[0]
        assert request.generated_text == " time"
        assert ("quantization", llm.config.quantization, "asked for") in llm.config.describe()


def test_a_quantized_checkpoint_is_described_and_not_quantized_again(tmp_path: Path) -> None:
    folder, _ = write_pair(tmp_path, LLAMA, gptq(4, 32))
    with pytest.raises(ConfigError, match=r"quantized already \(gptq, 4 bits in groups of 32\); leave the option out"):
        MegatronLLM(folder, quantization="int4")
    with MegatronLLM(folder, max_requests=4) as llm:
        assert ("quantization", "gptq, 4 bits in groups of 32", "the checkpoint's") in llm.config.describe()
        assert llm.generate([[1, 2, 3]], SamplingParams(num_tokens_to_generate=3))[0].error is None


def test_decisions_are_explained() -> None:
    with make_llm() as llm:
        rows = {option: (value, reason) for option, value, reason in llm.config.describe()}
    assert rows["dtype"] == ("float32", "the checkpoint's")
    assert all(reason for _, reason in rows.values())


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        MegatronLLM(tmp_path / "nowhere")


def test_an_empty_folder_is_a_broken_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpointError, match=r"config\.json: expected the model's configuration"):
        MegatronLLM(tmp_path)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "PerceptronForever"))
    with pytest.raises(UnknownArchitectureError, match="PerceptronForever"):
        MegatronLLM(tmp_path)


def test_a_truncated_weight_file_is_named(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BrokenCheckpointError, match=r"model\.safetensors"):
        MegatronLLM(tmp_path)


def test_a_folder_without_tokenizer_files_takes_ids_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_tiny_model("llama", tmp_path)
    with caplog.at_level(logging.WARNING), MegatronLLM(tmp_path) as llm:
        assert llm.generate([3, 4], GREEDY)[0].generated_length > 0
        with pytest.raises(InvalidRequestError, match="no tokenizer"):
            llm.generate("text", GREEDY)
        with pytest.raises(InvalidRequestError, match="stop_words need a tokenizer"):
            llm.generate([3], SamplingParams(stop="x"))
    assert "prompts must be token ids" in caplog.text


def test_a_broken_tokenizer_is_an_error(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        MegatronLLM(tmp_path)


def test_a_tokenizer_may_come_from_elsewhere(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path)
    with MegatronLLM(tmp_path, ByteTokenizer()) as llm:
        request = llm.generate([65], GREEDY)[0]
    assert request.generated_text == ByteTokenizer().detokenize(request.generated_tokens)


@pytest.mark.parametrize("options", [{"device": "toaster"}, {"kernels": "imaginary"}])
def test_an_unknown_device_or_backend_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    make_tiny_model("llama", tmp_path)
    with pytest.raises(KernelError, match="not known"):
        MegatronLLM(tmp_path, **options)


def test_loading_reports_progress(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path)
    seen: list[tuple[int, int]] = []
    MegatronLLM(tmp_path, on_progress=lambda done, total: seen.append((done, total))).shutdown()
    assert seen[-1][0] == seen[-1][1] > 0
    assert seen == sorted(seen)
