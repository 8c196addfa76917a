"""InferenceConfig says what is wrong; resolve turns every auto into a fact and says why."""

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilotron.config import GIB, InferenceConfig, MachineFacts, ModelFacts, resolve
from kilotron.errors import ConfigError

MODEL = ModelFacts(dtype="bfloat16", max_position_embeddings=2048, kv_numbers_per_token=1024, kv_heads_per_token=16)
MACHINE = MachineFacts(device="cpu", device_reason="no accelerator found", free_memory_bytes=64 * GIB)

WRONG_VALUES = [
    ("dtype", "int8", "dtype must be one of auto, float32, bfloat16, float16, not 'int8'"),
    ("dtype", None, "dtype must be one of"),
    ("device", 5, "device must be a text, not 5"),
    ("kernels", None, "kernels must be a text, not None"),
    ("logprobs_mode", "raw", "logprobs_mode must be one of raw_logprobs, processed_logprobs, not 'raw'"),
    ("kv_cache_dtype", "int4", "kv_cache_dtype must be one of auto, int8, not 'int4'"),
    ("quantization", "int3", "quantization must be one of None, int8, int4, not 'int3'"),
    ("quantization", 4, "quantization must be one of"),
    ("quantization_group_size", 48, "quantization_group_size must be one of 32, 64, 128, not 48"),
    ("quantization_group_size", 64, "quantization_group_size=64 goes with quantization='int4', not None"),
    ("block_size_tokens", 0, r"block_size_tokens must be a whole number in \[1, 4096\], not 0"),
    ("block_size_tokens", 4097, "not 4097"),
    ("block_size_tokens", 16.0, "not 16.0"),
    ("block_size_tokens", True, "not True"),
    ("max_requests", 0, "max_requests must be a whole number"),
    ("max_tokens", 0, "max_tokens must be a whole number"),
    ("max_sequence_length", 0, "max_sequence_length must be a whole number"),
    ("max_logits_tokens", 0, "max_logits_tokens must be a whole number"),
    ("max_waiting_requests", 0, "max_waiting_requests must be a whole number"),
    ("aging_steps", 0, "aging_steps must be a whole number"),
    ("num_threads", 0, "num_threads must be a whole number"),
    ("random_seed", "7", "random_seed must be a whole number"),
    ("profile", 3, "profile must be the name of a file"),
    ("weight_cache", "on", "weight_cache must be one of auto, write, off, not 'on'"),
    ("buffer_size_gb", 0, "buffer_size_gb must be a number above 0 .* not 0"),
    ("buffer_size_gb", float("nan"), "buffer_size_gb must be"),
    ("buffer_size_gb", float("inf"), "buffer_size_gb must be"),
    ("buffer_size_gb", "8", "buffer_size_gb must be a number above 0 .* not '8'"),
    ("buffer_size_gb", True, "buffer_size_gb must be a number above 0"),
    ("enable_prefix_caching", "no", "enable_prefix_caching must be True or False, not 'no'"),
    ("enable_chunked_prefill", 1, "enable_chunked_prefill must be True or False, not 1"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG_VALUES)
def test_wrong_value_is_named_with_its_range(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InferenceConfig(**{name: value})


def test_every_option_refuses_some_value() -> None:
    assert {name for name, _, _ in WRONG_VALUES} == {field.name for field in fields(InferenceConfig)}


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.sampled_from([field.name for field in fields(InferenceConfig)]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()) | st.binary(),
)
def test_any_value_is_taken_or_refused_with_a_config_error(name: str, value: Any) -> None:
    complaint = ""
    try:
        assert getattr(InferenceConfig(**{name: value}), name) == value
    except ConfigError as error:
        complaint = str(error)
    assert not complaint or complaint.startswith(f"{name} must be ")


def test_options_cannot_be_changed_later() -> None:
    with pytest.raises(FrozenInstanceError):
        InferenceConfig().max_requests = 3  # type: ignore[misc]


def test_unknown_option_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="unknown option 'max_request'; did you mean 'max_requests'"):
        InferenceConfig.from_dict({"max_request": 3})


def test_option_like_no_other_is_answered_with_all_of_them() -> None:
    with pytest.raises(ConfigError, match="unknown option 'zzz'; known: dtype, device"):
        InferenceConfig.from_dict({"zzz": 3})


def test_option_that_is_no_text_is_unknown() -> None:
    with pytest.raises(ConfigError, match="unknown option 5"):
        InferenceConfig.from_dict({5: 3})  # type: ignore[dict-item]


def test_config_from_a_mapping_is_the_config_from_keywords() -> None:
    assert InferenceConfig.from_dict({"max_requests": 3, "dtype": "float32"}) == InferenceConfig(
        max_requests=3, dtype="float32"
    )


def test_every_auto_becomes_a_fact_with_a_reason() -> None:
    resolved = resolve(InferenceConfig(), MODEL, MACHINE)
    assert resolved.describe() == [
        ("dtype", "bfloat16", "the checkpoint's"),
        ("quantization", "none", "the checkpoint's"),
        ("device", "cpu", "no accelerator found"),
        ("max_sequence_length", "2048", "the model's"),
        ("max_tokens", "1024", "chunks long enough for full matrix speed, short enough to keep other rows moving"),
        ("buffer_size_gb", "1.000 (16385 blocks)", "enough for 256 requests of 2048 tokens"),
    ]


def test_what_was_asked_for_is_kept_and_said() -> None:
    config = InferenceConfig(
        dtype="float32", quantization="int8", max_tokens=77, max_sequence_length=100, buffer_size_gb=0.5
    )
    resolved = resolve(config, MODEL, MACHINE)
    reasons = {name: reason for name, _, reason in resolved.describe() if name != "device"}
    assert set(reasons.values()) == {"asked for"}
    assert (resolved.dtype, resolved.max_tokens, resolved.max_sequence_length) == ("float32", 77, 100)
    assert (resolved.num_blocks, resolved.kv_cache_bytes) == (4096, GIB // 2)


def test_int4_has_a_group_size_in_the_end() -> None:
    resolved = resolve(InferenceConfig(quantization="int4"), MODEL, MACHINE)
    assert (resolved.quantization, resolved.options.quantization_group_size) == ("int4 in groups of 64", 64)
    asked = resolve(InferenceConfig(quantization="int4", quantization_group_size=32), MODEL, MACHINE)
    assert ("quantization", "int4 in groups of 32", "asked for") in asked.describe()


def test_a_quantized_checkpoint_is_told_and_not_quantized_again() -> None:
    model = MODEL._replace(quantization="awq, 4 bits in groups of 128")
    assert resolve(InferenceConfig(), model, MACHINE).quantization == "awq, 4 bits in groups of 128"
    with pytest.raises(ConfigError, match=r"quantization=int8, but the checkpoint is quantized already \(awq, .* out"):
        resolve(InferenceConfig(quantization="int8"), model, MACHINE)


def test_resolved_options_have_no_auto_left() -> None:
    options = resolve(InferenceConfig(), MODEL, MACHINE).options
    assert (options.max_tokens, options.max_sequence_length) == (1024, 2048)


def test_accelerator_gets_longer_chunks() -> None:
    resolved = resolve(InferenceConfig(), MODEL, MACHINE._replace(device="cuda"))
    assert (resolved.max_tokens, resolved.reasons["max_tokens"]) == (8192, "chunks that fill an accelerator")


def test_cache_takes_at_most_half_of_the_free_memory() -> None:
    resolved = resolve(InferenceConfig(), MODEL, MACHINE._replace(free_memory_bytes=GIB))
    assert resolved.kv_cache_bytes == GIB // 2
    assert resolved.reasons["buffer_size_gb"] == "half of the 1.0 GiB of free memory"


@settings(derandomize=True, deadline=None)
@given(st.floats(0.01, 64), st.integers(1, 512), st.sampled_from(["float32", "bfloat16"]))
def test_cache_is_never_larger_than_asked_for(size_gb: float, block_size: int, dtype: str) -> None:
    config = InferenceConfig(buffer_size_gb=size_gb, block_size_tokens=block_size, dtype=dtype)
    resolved = resolve(config, MODEL, MACHINE)
    assert size_gb * GIB - resolved.kv_cache_bytes < resolved.kv_cache_bytes / resolved.num_blocks
    assert resolved.kv_cache_bytes <= size_gb * GIB


def test_sequence_longer_than_the_model_allows_is_a_contradiction() -> None:
    with pytest.raises(ConfigError, match="max_sequence_length=4096 exceeds the model's 2048 positions"):
        resolve(InferenceConfig(max_sequence_length=4096), MODEL, MACHINE)


def test_buffer_too_small_for_a_block_is_refused_with_the_size_of_one() -> None:
    with pytest.raises(ConfigError, match=r"buffer_size_gb=0\.0001 holds 1 blocks of 65536 bytes; at least 2"):
        resolve(InferenceConfig(buffer_size_gb=0.0001), MODEL, MACHINE)


def test_machine_without_memory_is_told_what_to_do() -> None:
    with pytest.raises(ConfigError, match="hold no KV cache; free some, or set buffer_size_gb"):
        resolve(InferenceConfig(), MODEL, MACHINE._replace(free_memory_bytes=1000))


def test_an_int8_cache_holds_almost_twice_the_tokens_in_the_same_memory() -> None:
    machine = MachineFacts("cpu", "asked for", 8 * GIB)
    plain, small = (
        resolve(InferenceConfig(buffer_size_gb=1, kv_cache_dtype=dtype), MODEL, machine) for dtype in ("auto", "int8")
    )
    assert small.num_blocks / plain.num_blocks == pytest.approx(2 * 1024 / (1024 + 4 * 16), abs=0.001)
