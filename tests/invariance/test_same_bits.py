"""A request's tokens and log-probabilities are the same bits whatever happens around it.

"Plain" is a request alone in a fresh engine with room for everything. Every other way must give exactly its result:
tokens, log-probabilities of tokens and prompt, and the most likely alternatives.
"""

from typing import Any

import pytest
import torch

from fakes import TINY_CONFIG, kv_gigabytes, make_llm, make_model
from kilotron.inference_request import InferenceRequest
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.models.gpt_model import GPTModel
from kilotron.models.quantization.rounding import Rounding
from kilotron.models.transformer_config import LatentAttention
from kilotron.sampling_params import SamplingParams
from unit.kernels.cpu_backends import ISAS, make_cpu

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODELS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mha-learned-positions": {
        "num_query_groups": 4,
        "position_embedding_type": "learned",
        "normalization": "LayerNorm",
        "gated_linear_unit": False,
        "activation": "gelu",
        "add_qkv_bias": True,
    },
    "windows-and-softcaps": {
        "layer_windows": (24, None),
        "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 10.0,
        "norm_placement": "sandwich",
        "activation": "gelu_tanh",
    },
    "experts": {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 24},
    "latent-experts": {
        "latent_attention": LatentAttention(
            q_lora_rank=24, kv_lora_rank=16, qk_head_dim=12, qk_pos_emb_head_dim=8, v_head_dim=10
        ),
        "num_query_groups": TINY_CONFIG["num_attention_heads"],
        "kv_channels": 20,
        "num_moe_experts": 8,
        "moe_router_topk": 4,
        "moe_ffn_hidden_size": 24,
        "moe_router_score_function": "sigmoid",
        "moe_router_float32": True,
        "moe_router_enable_expert_bias": True,
        "moe_router_num_groups": 4,
        "moe_router_group_topk": 2,
        "moe_shared_expert_intermediate_size": 40,
        "moe_shared_expert_gate": True,
    },
    "sinks-and-clamps": {
        "softmax_type": "learnable",
        "layer_windows": (24, None),
        "no_rope_layers": (False, True),
        "activation": "quick_gelu",
        "activation_clamp": 1.0,
        "glu_linear_offset": 1.0,
        "add_mlp_bias": True,
        "add_router_bias": True,
        "num_moe_experts": 4,
        "moe_router_topk": 2,
        "moe_ffn_hidden_size": 24,
    },
    "int8": {"rounding": Rounding(8, None), "ffn_hidden_size": 60},
    "int4": {"rounding": Rounding(4, 32), "hidden_size": 64, "ffn_hidden_size": 96},
    "int4-experts": {
        "rounding": Rounding(4, 32),
        "hidden_size": 64,
        "num_moe_experts": 4,
        "moe_router_topk": 2,
        "moe_ffn_hidden_size": 32,
    },
}
ON_REFERENCE = [("gqa", "float32"), ("windows-and-softcaps", "bfloat16")]
ON_CPU = [
    ("gqa", "float32"),
    ("gqa", "bfloat16"),
    ("mha-learned-positions", "float32"),
    ("windows-and-softcaps", "float32"),
    ("experts", "bfloat16"),
    ("latent-experts", "bfloat16"),
    ("sinks-and-clamps", "bfloat16"),
    ("int8", "bfloat16"),
    ("int4", "float32"),
]
ONLY_SLOW = [
    ("gqa", "float16"),
    ("windows-and-softcaps", "bfloat16"),
    ("experts", "float32"),
    ("latent-experts", "float32"),
    ("sinks-and-clamps", "float32"),
    ("int4-experts", "bfloat16"),
]


def subjects() -> list[Any]:
    """(model, dtype, instruction set or the reference); the best instruction set by default, the others are slow."""
    found = [pytest.param((*subject, "reference"), marks=pytest.mark.exact_bits) for subject in ON_REFERENCE]
    for isa in ISAS:
        found += [pytest.param((*one, isa), marks=() if isa == ISAS[0] else pytest.mark.slow) for one in ON_CPU]
        found += [pytest.param((*one, isa), marks=pytest.mark.slow) for one in ONLY_SLOW]
    return [pytest.param(*one.values, marks=one.marks, id="-".join(one.values[0])) for one in found]


LENGTHS = (1, 2, 7, 8, 9, 17, 40, 64, 90, 127, 131, 170)
NUM_GENERATED = 16


@pytest.fixture(scope="module", params=subjects())
def model(request: pytest.FixtureRequest) -> GPTModel:
    name, dtype, kernels = request.param
    torch.set_num_threads(1)
    backend = ReferenceBackend() if kernels == "reference" else make_cpu(kernels)
    return make_model(dtype=DTYPES[dtype], kernels=backend, **MODELS[name])


@pytest.fixture(scope="module")
def plain(model: GPTModel) -> list[Any]:
    return [run(model, [prompt], [params])[0] for prompt, params in zip(PROMPTS, PARAMS, strict=True)]


def _prompts(lengths: tuple[int, ...]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    prompts = [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]
    return [*prompts, prompts[-1][:60] + prompts[0], prompts[-1][:96] + prompts[1]]  # two share a long beginning


def _params(index: int) -> SamplingParams:
    """Greedy, sampled, filtered and penalized requests in turn."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.9, "seed": index},
        {"temperature": 1.2, "top_k": 30, "top_p": 0.9, "seed": index},
        {"temperature": 0.7, "min_p": 0.02, "frequency_penalty": 0.5, "repetition_penalty": 1.2, "seed": index},
    ]
    return SamplingParams(
        **kinds[index % len(kinds)], max_tokens=NUM_GENERATED, ignore_eos=True, return_log_probs=True, top_n_logprobs=3
    )


PROMPTS = _prompts(LENGTHS)
PARAMS = [_params(index) for index in range(len(PROMPTS))]


def result(request: InferenceRequest) -> Any:
    assert request.error is None
    return (
        request.generated_tokens,
        request.generated_log_probs,
        request.prompt_log_probs,
        request.generated_top_n_ids,
        request.prompt_top_n_ids,
    )


def run(model: GPTModel, prompts: list[list[int]], params: list[SamplingParams], **options: Any) -> list[Any]:
    with make_llm(model, **options) as llm:
        return [result(request) for request in llm.generate(prompts, params)]


def test_in_a_crowd(model: GPTModel, plain: list[Any]) -> None:
    assert run(model, PROMPTS, PARAMS) == plain


def test_in_a_crowd_in_another_order(model: GPTModel, plain: list[Any]) -> None:
    assert run(model, PROMPTS[::-1], PARAMS[::-1])[::-1] == plain


@pytest.mark.parametrize("max_tokens", [7, 64])
def test_with_the_prompt_in_chunks(model: GPTModel, plain: list[Any], max_tokens: int) -> None:
    assert run(model, PROMPTS, PARAMS, max_tokens=max_tokens) == plain


def test_token_by_token(model: GPTModel, plain: list[Any]) -> None:
    few = slice(3, 8)
    assert run(model, PROMPTS[few], PARAMS[few], max_tokens=1) == plain[few]


def test_with_two_threads(model: GPTModel, plain: list[Any]) -> None:
    few = slice(5, 9)
    torch.set_num_threads(2)
    assert run(model, PROMPTS[few], PARAMS[few], max_tokens=50) == plain[few]


def test_with_few_logits_per_step(model: GPTModel, plain: list[Any]) -> None:
    assert run(model, PROMPTS, PARAMS, max_logits_tokens=10) == plain


@pytest.mark.parametrize("block_size", [3, 64])
def test_with_other_block_sizes(model: GPTModel, plain: list[Any], block_size: int) -> None:
    assert run(model, PROMPTS, PARAMS, block_size_tokens=block_size) == plain


def test_when_preempted(model: GPTModel, plain: list[Any]) -> None:
    itemsize = next(model.parameters()).dtype.itemsize
    config = model.config
    usual = TINY_CONFIG["num_query_groups"] * TINY_CONFIG["kv_channels"]
    num_blocks = 26 * config.num_query_groups * config.kv_channels // usual
    with make_llm(model, buffer_size_gb=kv_gigabytes(num_blocks, itemsize=itemsize), max_tokens=48) as llm:
        requests = llm.generate(PROMPTS, PARAMS)
        assert llm.engine.scheduler.num_preemptions > 0
        assert [result(request) for request in requests] == plain


def unscored(index: int) -> SamplingParams:
    params = _params(index)
    params.add_attributes({"skip_prompt_log_probs": True})
    return params


def without_prompt(results: list[Any]) -> list[Any]:
    return [(tokens, log_probs, top) for tokens, log_probs, _, top, _ in results]


def test_with_a_warm_prefix_cache(model: GPTModel, plain: list[Any]) -> None:
    params = [unscored(index) for index in range(len(PROMPTS))]
    with make_llm(model) as llm:
        cold, warm = llm.generate(PROMPTS, params), llm.generate(PROMPTS, params)
    assert sum(request.num_cached_tokens for request in warm) > 300
    for requests in (cold, warm):
        assert without_prompt([result(request) for request in requests]) == without_prompt(plain)


def test_with_a_prompt_cached_by_another_ones_generation(model: GPTModel) -> None:
    longer = PROMPTS[6] + run(model, [PROMPTS[6]], [unscored(1)])[0][0]
    expected = run(model, [longer], [unscored(2)])
    with make_llm(model) as llm:
        llm.generate([PROMPTS[6]], unscored(1))
        request = llm.generate([longer], unscored(2))[0]
    assert request.num_cached_tokens >= len(PROMPTS[6])
    assert [result(request)] == expected


def test_streamed(model: GPTModel, plain: list[Any]) -> None:
    with make_llm(model) as llm:
        for index in (3, 7, 10):
            items = list(llm.generate_stream(PROMPTS[index], PARAMS[index]))
            assert [token for item in items for token in item.token_ids] == plain[index][0]
            assert [value for item in items for value in item.log_probs or ()] == plain[index][1]


def test_scoring_what_was_generated_gives_what_generation_said(model: GPTModel, plain: list[Any]) -> None:
    texts = [prompt + result[0] for prompt, result in zip(PROMPTS, plain, strict=True)]
    for max_tokens in (None, 29):
        with make_llm(model, max_tokens=max_tokens) as llm:
            for request, (_, log_probs, prompt_log_probs, _, _) in zip(llm.score(texts), plain, strict=True):
                assert request.prompt_log_probs == prompt_log_probs + log_probs


def test_as_the_first_of_several_choices(model: GPTModel, plain: list[Any]) -> None:
    for index in (1, 5, 9):
        params = _params(index)
        params.add_attributes({"n": 4})
        with make_llm(model, max_tokens=40) as llm:
            choices = llm.generate([PROMPTS[index]], params)[0].choices
        assert result(choices[0]) == plain[index]
        assert [choice.prompt_log_probs for choice in choices] == [plain[index][2]] * 4


def test_with_neighbours_that_come_and_go(model: GPTModel, plain: list[Any]) -> None:
    with make_llm(model, max_tokens=40) as llm:
        engine, watched = llm.engine, []
        for index, prompt in enumerate(PROMPTS):
            watched.append(engine.add_request(prompt, PARAMS[index]))
            passer_by = engine.add_request(PROMPTS[-1 - index], _params(index + 1))
            for _ in range(index % 4):
                engine.step()
            if not passer_by.is_finished:
                engine.abort(passer_by.request_id)
        while engine.has_unfinished_requests:
            engine.step()
    assert [result(request) for request in watched] == plain
