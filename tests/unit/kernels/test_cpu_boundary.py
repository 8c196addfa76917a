"""The native module refuses every argument that does not fit, by name, before any kernel touches memory."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kilotron.errors import KernelError
from kilotron.kernels.cpu.backend import ISA_VARIABLE, CpuBackend
from kilotron.kernels.interface import AttentionOptions, DecoderLayer, HeadNorms, NormWeights
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.kernels.registry import choose_backend
from unit.kernels.cpu_backends import make_cpu, native, needs_native

pytestmark = needs_native

TOKENS, SIZE, OUT, HEADS, GROUPS, CHANNELS, BLOCK_SIZE, NUM_BLOCKS = 3, 8, 6, 4, 2, 8, 16, 5
I64 = torch.int64


def integers(*rows: Any) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def good_arguments() -> dict[str, dict[str, Any]]:
    """Arguments of each operation that are accepted, in order."""
    matrix, kv = pack(), allocate()[0]
    pair = [native.pack_plain(torch.ones(2 * SIZE, SIZE), None, "silu", True, None, 0.0, 1)], [pack(SIZE)]
    return {
        "pack_plain": {
            "weight": torch.ones(OUT, SIZE), "bias": torch.ones(OUT), "activation": "silu", "is_gated": True,
            "clamp": 7.0, "linear_offset": 1.0, "threads": 1,
        },
        "pack_quantized": {
            "values": torch.ones(OUT, 64, dtype=torch.int8),
            "scales": torch.ones(OUT, 2),
            "zeros": torch.zeros(OUT, 2, dtype=torch.int8),
            "bits": 4,
            "bias": None,
            "activation": None,
            "is_gated": False,
            "clamp": None,
            "linear_offset": 0.0,
            "threads": 1,
        },
        "allocate_kv": {
            "num_layers": 2, "num_blocks": 3, "block_size": 4, "heads": 2, "channels": 8, "dtype": "float16"
        },
        "StepRows": {
            "num_computed": integers(3, 0), "num_new": integers(1, 2), "block_table": integers([1, 0], [2, 0]),
            "block_size": BLOCK_SIZE,
        },
        "CpuKernels": {"isa": native.supported_isas()[0], "threads": 1},
        "linear": {
            "x": torch.ones(TOKENS, SIZE), "matrix": matrix, "residual": torch.ones(TOKENS, OUT),
            "result": torch.empty(TOKENS, OUT),
        },
        "rms_norm": {
            "x": torch.ones(TOKENS, SIZE), "weight": torch.ones(SIZE), "epsilon": 1e-6, "weight_offset": 0.0,
            "result": torch.empty(TOKENS, SIZE),
        },
        "layer_norm": {
            "x": torch.ones(TOKENS, SIZE), "weight": torch.ones(SIZE), "bias": torch.ones(SIZE), "epsilon": 1e-6,
            "result": torch.empty(TOKENS, SIZE),
        },
        "rotate_and_append": {
            "heads": torch.ones(TOKENS, HEADS + 2 * GROUPS, CHANNELS), "query_weight": torch.ones(CHANNELS),
            "key_weight": torch.ones(CHANNELS), "epsilon": 1e-6, "weight_offset": 0.0,
            "cos": torch.ones(TOKENS, 4), "sin": torch.ones(TOKENS, 4),
            "kv": kv, "slots": torch.arange(BLOCK_SIZE, BLOCK_SIZE + TOKENS),
            "result": torch.empty(TOKENS, HEADS, CHANNELS),
        },
        "paged_attention": {
            "query": torch.ones(TOKENS, HEADS, CHANNELS), "kv": kv, "rows": rows(), "scale": 1.0, "window": 0,
            "softcap": 0.0, "sinks": torch.ones(HEADS), "position_bias": torch.ones(HEADS, 5),
            "result": torch.empty(TOKENS, HEADS, CHANNELS),
        },
        "DecoderLayers": {"layers": [layer()]},
        "run_layers": {
            "hidden": torch.ones(TOKENS, SIZE), "layers": native.DecoderLayers([layer()]),
            "rotations": ((torch.ones(TOKENS, 4), torch.ones(TOKENS, 4)), None), "kv_layers": [kv],
            "slots": torch.arange(BLOCK_SIZE, BLOCK_SIZE + TOKENS), "rows": rows(),
            "result": torch.empty(TOKENS, SIZE),
        },
        "mix_experts": {
            "x": torch.ones(TOKENS, SIZE), "gate_up": pair[0], "down": pair[1],
            "expert_ids": torch.zeros(TOKENS, 2, dtype=I64), "expert_weights": torch.ones(TOKENS, 2),
            "result": torch.empty(TOKENS, SIZE),
        },
    }  # fmt: skip


def pack(outputs: int = OUT, dtype: torch.dtype = torch.float32, inputs: int = SIZE) -> Any:
    return native.pack_plain(torch.ones(outputs, inputs, dtype=dtype), None, None, False, None, 0.0, 1)


def norm(weight: Any = None, kind: str = "RMSNorm", bias: Any = None) -> NormWeights:
    return NormWeights(kind, torch.ones(SIZE) if weight is None else weight, bias, 1e-6, 0.0)


def layer(**changes: Any) -> DecoderLayer:
    """One that fits the cache, with changes."""
    queries = HEADS * CHANNELS
    return DecoderLayer(
        input_norm=norm(), linear_qkv=pack(queries + 2 * GROUPS * CHANNELS),
        head_norms=HeadNorms(torch.ones(CHANNELS), torch.ones(CHANNELS), 1e-6, 0.0), rotation=0, kv_layer=0,
        attention=AttentionOptions(scale=1.0), linear_proj=pack(SIZE, inputs=queries), mlp_norm=norm(),
        linear_fc1=pack(OUT), linear_fc2=pack(SIZE, inputs=OUT),
    )._replace(**changes)  # fmt: skip


def allocate(dtype: str = "float32") -> Any:
    return native.allocate_kv(1, NUM_BLOCKS, BLOCK_SIZE, GROUPS, CHANNELS, dtype)


def rows(new: int = TOKENS, block: int = 1, block_size: int = BLOCK_SIZE) -> Any:
    return native.StepRows(integers(0), integers(new), integers([block]), block_size)


def call(operation: str, changes: dict[str, Any]) -> Any:
    arguments = good_arguments()[operation] | changes
    kernels = native.CpuKernels(native.supported_isas()[0], 1)
    function = getattr(kernels, operation, None) or getattr(native, operation)
    return function(*arguments.values())


WRONG_ARRAYS: dict[str, Callable[[torch.Tensor], Any]] = {
    "another dtype": lambda x: x.to(torch.float64 if x.is_floating_point() else torch.int16),
    "one axis more": lambda x: x.unsqueeze(0).unsqueeze(0),
    "one axis less": lambda x: x[0],
    "a longer last axis": lambda x: torch.cat((x, x), -1),
    "a longer first axis": lambda x: torch.cat((x, x)),
    "a strided last axis": lambda x: torch.stack((x, x), -1)[..., 0],
    "no array": lambda x: "eight",
    "a list": lambda x: x.tolist(),
    "another device": lambda x: x.to("meta"),
}
# What fits all the same: sizes that name themselves, and an only axis whose size is free.
FITTING = {
    ("StepRows", "block_table", "a longer last axis"), ("pack_plain", "weight", "a longer last axis"),
    ("pack_quantized", "values", "a longer last axis"), ("paged_attention", "position_bias", "a longer last axis"),
}  # fmt: skip
ARRAYS = [
    (operation, name, wrong)
    for operation, arguments in (good_arguments() if native else {}).items()
    for name, value in arguments.items()
    if isinstance(value, torch.Tensor | np.ndarray)
    for wrong in WRONG_ARRAYS
    if (operation, name, wrong) not in FITTING
]


@pytest.mark.parametrize("operation", good_arguments() if native else [])
def test_arguments_that_fit_are_accepted(operation: str) -> None:
    call(operation, {})


@pytest.mark.parametrize(("operation", "name", "wrong"), ARRAYS)
def test_an_array_that_does_not_fit_is_refused(operation: str, name: str, wrong: str) -> None:
    array = WRONG_ARRAYS[wrong](torch.as_tensor(good_arguments()[operation][name]))
    with pytest.raises((TypeError, ValueError), match=r"expected|threads") as caught:
        call(operation, {name: array})
    known = {*good_arguments()[operation], "query, keys and values", "experts"}
    assert str(caught.value).split(":")[0] in known


SCALARS: list[tuple[str, dict[str, Any], str]] = [
    ("pack_plain", {"activation": "swish"}, "activation swish is unknown"),
    ("pack_plain", {"clamp": 0.0}, "clamp must be positive"),
    ("pack_plain", {"clamp": -1.0}, "clamp must be positive"),
    ("pack_plain", {"clamp": float("nan")}, "clamp must be positive"),
    ("pack_plain", {"linear_offset": float("inf")}, "linear_offset must be finite"),
    ("pack_plain", {"threads": 0}, "threads must be within 1 and 256"),
    ("pack_plain", {"threads": 257}, "threads must be"),
    ("pack_plain", {"weight": torch.ones(5, SIZE), "bias": None}, "weight: expected an even number of outputs"),
    ("pack_plain", {"weight": torch.ones(OUT, 0)}, "weight: expected at least one input"),
    ("pack_quantized", {"bits": 5}, "bits must be 4 or 8"),
    ("pack_quantized", {"threads": -1}, "threads must be"),
    ("pack_quantized", {"activation": "swish"}, "activation swish"),
    ("pack_quantized", {"values": torch.ones(OUT, 0, dtype=torch.int8)}, "values: expected at least one input"),
    ("pack_quantized", {"values": torch.ones(OUT, 48, dtype=torch.int8)}, "scales: expected one group, or groups"),
    ("pack_quantized", {"values": torch.ones(OUT, 4096, dtype=torch.int8)}, "at most 1024 inputs"),
    ("pack_quantized", {"zeros": torch.full((OUT, 2), 17, dtype=torch.int8)}, "zeros: expected values within 0 and 16"),
    ("pack_quantized", {"zeros": torch.full((OUT, 2), -1, dtype=torch.int8)}, "zeros: expected values within"),
    ("pack_quantized", {"bits": 8, "zeros": torch.ones(OUT, 2, dtype=torch.int8)}, "zeros: expected 0 everywhere"),
    ("allocate_kv", {"num_layers": 0}, "sizes of a KV cache must be positive"),
    ("allocate_kv", {"num_blocks": -1}, "sizes of a KV cache must be positive"),
    ("allocate_kv", {"block_size": 0}, "sizes of a KV cache must be positive"),
    ("allocate_kv", {"heads": 0}, "sizes of a KV cache must be positive"),
    ("allocate_kv", {"channels": 1025}, "channels at most 1024"),
    ("allocate_kv", {"dtype": "float64"}, "dtype float64 of a KV cache"),
    ("allocate_kv", {"num_blocks": 2**61}, "KV cache .* too large"),
    ("allocate_kv", {"num_layers": 2**40, "num_blocks": 2**40}, "KV cache .* too large"),
    ("allocate_kv", {"block_size": 2**63 - 1}, "KV cache .* too large"),
    ("StepRows", {"num_computed": integers(-1, 0)}, "num_new: expected positive sizes"),
    ("StepRows", {"num_new": integers(0, 1)}, "num_new: expected positive sizes"),
    ("StepRows", {"num_new": integers(1, 33)}, "num_new: expected positive sizes that fit the block table"),
    ("StepRows", {"num_computed": integers(2**63 - 1, 0)}, "num_new: expected positive sizes that fit"),
    ("StepRows", {"num_new": integers(2**63 - 1, 1)}, "num_new: expected positive sizes that fit"),
    ("StepRows", {"block_table": integers([1, -1], [2, 0])}, "block_table: expected block ids"),
    ("StepRows", {"block_table": integers([1, 2**31], [2, 0])}, "block_table: expected block ids"),
    ("StepRows", {"block_size": 0}, "block_size must be"),
    ("StepRows", {"block_size": 2**62}, "block_size must be"),
    ("CpuKernels", {"isa": "mmx"}, "instruction set mmx is unknown or does not run"),
    ("CpuKernels", {"threads": 0}, "threads must be"),
    ("linear", {"matrix": None}, "incompatible function arguments"),
    ("linear", {"x": torch.ones(TOKENS, SIZE).half()}, "x: expected the dtype of the packed weight"),
    ("rms_norm", {"x": torch.ones(TOKENS, 0), "weight": torch.ones(0), "result": torch.ones(TOKENS, 0)}, "x: expected"),
    ("rms_norm", {"result": torch.ones(TOKENS, SIZE, 0)}, "result: expected"),
    ("rms_norm", {"weight": None}, "incompatible function arguments"),
    (
        "layer_norm",
        {"x": torch.ones(1, 0), "weight": torch.ones(0), "bias": None, "result": torch.ones(1, 0)},
        "x: exp",
    ),
    ("rotate_and_append", {"slots": torch.tensor([16, 17, NUM_BLOCKS * BLOCK_SIZE])}, "slots: expected places"),
    ("rotate_and_append", {"slots": torch.tensor([16, 17, -1])}, "slots: expected places"),
    ("rotate_and_append", {"slots": torch.tensor([15, 16, 17])}, "slots: expected places .* the null block"),
    ("rotate_and_append", {"cos": torch.ones(3, 5), "sin": torch.ones(3, 5)}, "cos: expected at most half"),
    ("rotate_and_append", {"heads": torch.ones(3, 3, 8), "result": torch.ones(3, 0, 8)}, "heads: expected queries"),
    ("paged_attention", {"sinks": torch.ones(HEADS - 1)}, "sinks: expected one for each of 4 query heads"),
    ("paged_attention", {"sinks": torch.ones(0)}, "sinks: expected at least one"),
    ("paged_attention", {"position_bias": torch.ones(2, 10)}, "position_bias: expected a row for each of 4 query"),
    ("paged_attention", {"position_bias": torch.ones(4, 0)}, "position_bias: expected at least one head and one"),
    ("rotate_and_append", {"sin": None}, "sin: expected an array"),
    ("paged_attention", {"rows": None}, "incompatible function arguments"),
    ("paged_attention", {"kv": None}, "incompatible function arguments"),
    ("paged_attention", {"window": -1}, "window must be positive"),
    ("paged_attention", {"query": torch.ones(3, 0, 8), "result": torch.ones(3, 0, 8)}, "query: expected a multiple"),
    ("paged_attention", {"query": torch.ones(3, 3, 8), "result": torch.ones(3, 3, 8)}, "query: expected a multiple"),
    ("mix_experts", {"expert_ids": torch.full((TOKENS, 2), 1)}, "expert_ids: expected numbers below 1"),
    ("mix_experts", {"expert_ids": torch.full((TOKENS, 2), -1)}, "expert_ids: expected numbers below 1"),
    ("mix_experts", {"gate_up": [], "down": []}, "experts: expected as many"),
    ("mix_experts", {"gate_up": [None], "down": [None]}, "experts: expected|incompatible"),
]


@pytest.mark.parametrize(("operation", "changes", "message"), SCALARS)
def test_a_value_that_does_not_fit_is_refused(operation: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(operation, changes)


LAYERS: list[tuple[Callable[[], dict[str, Any]], str]] = [
    (lambda: {"linear_qkv": None}, "linear_qkv: expected a packed matrix"),
    (lambda: {"linear_fc1": torch.ones(OUT, SIZE)}, "linear_fc1: expected a packed matrix"),
    (lambda: {"linear_fc1": pack(OUT, torch.bfloat16)}, "linear_fc1: expected the dtype of the norms"),
    (lambda: {"linear_qkv": pack(64, inputs=SIZE + 1)}, "layers: expected matrices that fit each other"),
    (lambda: {"linear_proj": pack(SIZE + 1, inputs=32)}, "layers: expected matrices that fit each other"),
    (lambda: {"linear_fc1": pack(OUT + 1)}, "layers: expected matrices that fit each other"),
    (lambda: {"linear_fc1": pack(OUT, inputs=SIZE + 1)}, "layers: expected matrices that fit each other"),
    (lambda: {"linear_fc2": pack(SIZE + 1, inputs=OUT)}, "layers: expected matrices that fit each other"),
    (lambda: {"input_norm": norm(torch.ones(SIZE, dtype=torch.int64))}, "input_norm: expected float32, float16"),
    (lambda: {"input_norm": norm(torch.ones(0))}, "input_norm: expected at least one"),
    (lambda: {"mlp_norm": norm(torch.ones(SIZE).half())}, "mlp_norm: expected float32, found float16"),
    (lambda: {"mlp_norm": norm(torch.ones(SIZE + 1))}, "mlp_norm: expected as many numbers"),
    (lambda: {"mlp_norm": norm(bias=torch.ones(SIZE - 1), kind="LayerNorm")}, "mlp_norm: expected as many numbers"),
    (lambda: {"mlp_norm": norm(kind="L2Norm")}, "mlp_norm: expected RMSNorm or LayerNorm"),
    (lambda: {"head_norms": HeadNorms(torch.ones(8), torch.ones(8).half(), 0.0, 0.0)}, "head_norms: expected float32"),
    (lambda: {"attention": AttentionOptions(scale=1.0, window=-1)}, "window: expected a number that is not"),
    (lambda: {"attention": AttentionOptions(scale=1.0, sinks=torch.ones(4).half())}, "sinks: expected float32, found"),
    (lambda: {"attention": AttentionOptions(scale=1.0, position_bias=torch.ones(4))}, "position_bias: expected 2 axes"),
    (lambda: {"kv_layer": -1}, "kv_layer: expected a number that is not negative"),
    (lambda: {"rotation": -1}, "rotation: expected a number that is not negative"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), LAYERS)
def test_a_layer_that_does_not_fit_itself_is_refused(changes: Callable[[], dict[str, Any]], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        native.DecoderLayers([layer(), layer(**changes())] if "input_norm" not in changes() else [layer(**changes())])


def test_layers_must_be_there() -> None:
    with pytest.raises(TypeError, match="layers: expected at least one"):
        native.DecoderLayers([])
    with pytest.raises(AttributeError, match="input_norm"):
        native.DecoderLayers(["layer"])
    with pytest.raises(TypeError, match="not iterable"):
        native.DecoderLayers(1)


def wide_rotation(tokens: int = TOKENS, columns: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(tokens, columns), torch.ones(tokens, columns)


def with_attention(**options: Any) -> Any:
    return native.DecoderLayers([layer(attention=AttentionOptions(scale=1.0, **options))])


STEPS: list[tuple[Callable[[], dict[str, Any]], str]] = [
    (lambda: {"slots": torch.tensor([16, 17, NUM_BLOCKS * BLOCK_SIZE])}, "slots: expected places"),
    (lambda: {"slots": torch.tensor([15, 16, 17])}, "slots: expected places .* the null block"),
    (lambda: {"slots": torch.tensor([-1, 16, 17])}, "slots: expected places"),
    (lambda: {"rows": rows(new=TOKENS + 1)}, "hidden: expected size 4 of axis 0"),
    (lambda: {"rows": rows(block=NUM_BLOCKS)}, "rows: expected blocks of this cache"),
    (lambda: {"rows": rows(block_size=8)}, "rows: expected blocks of this cache"),
    (lambda: {"rows": None}, "incompatible function arguments"),
    (lambda: {"kv_layers": []}, "kv_layers: expected one for each layer"),
    (lambda: {"kv_layers": [None]}, "incompatible function arguments"),
    (lambda: {"kv_layers": allocate("bfloat16")}, "queries, keys and values: expected the dtype of the cache"),
    (lambda: {"kv_layers": native.allocate_kv(1, 5, 16, 3, 8, "float32")}, "kv_layers: expected heads that fit the"),
    (lambda: {"kv_layers": native.allocate_kv(1, 5, 16, 2, 16, "float32")}, "kv_layers: expected heads that fit the"),
    (lambda: {"kv_layers": native.allocate_kv(1, 5, 16, 1, 16, "float32")}, "kv_layers: expected heads .* their norms"),
    (lambda: {"rotations": ()}, "rotations: expected one for each layer"),
    (lambda: {"rotations": [None]}, "incompatible function arguments"),
    (lambda: {"rotations": (torch.ones(2, TOKENS, 4),)}, "rotations: expected pairs"),
    (lambda: {"rotations": (wide_rotation(columns=5),)}, "cos: expected at most half"),
    (lambda: {"rotations": (wide_rotation(TOKENS + 1),)}, "cos: expected size"),
    (lambda: {"rotations": ((wide_rotation()[0], None),)}, "sin: expected an array"),
    (lambda: {"rotations": ((wide_rotation()[0], wide_rotation(columns=3)[0]),)}, "sin: expected size"),
    (lambda: {"rotations": ((wide_rotation()[0].half(), wide_rotation()[1]),)}, "cos: expected float32"),
    (lambda: {"layers": native.DecoderLayers([layer(), layer(kv_layer=1)])}, "kv_layers: expected one for each"),
    (lambda: {"layers": native.DecoderLayers([layer(), layer(rotation=2)])}, "rotations: expected one for each"),
    (lambda: {"layers": with_attention(sinks=torch.ones(3))}, "sinks: expected one for each of 4"),
    (lambda: {"layers": with_attention(position_bias=torch.ones(2, 9))}, "position_bias: expected a row for each of 4"),
    (lambda: {"layers": None}, "incompatible function arguments"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), STEPS)
def test_a_step_that_does_not_fit_the_layers_is_refused(changes: Callable[[], dict[str, Any]], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call("run_layers", changes())


def test_rows_of_hidden_states_may_lie_apart() -> None:
    hidden, results = torch.randn(TOKENS, SIZE), [torch.empty(TOKENS, SIZE) for _ in range(2)]
    apart = torch.cat((hidden, hidden), -1)[:, :SIZE]
    for x, result in zip((hidden, apart), results, strict=True):
        call("run_layers", {"hidden": x, "result": result})
    assert torch.equal(*results)


def test_rows_of_another_cache_are_refused() -> None:
    for wrong in (rows(block=NUM_BLOCKS), rows(block_size=8)):
        with pytest.raises(TypeError, match="rows: expected blocks of this cache"):
            call("paged_attention", {"rows": wrong})
    with pytest.raises(TypeError, match="queries, keys and values: expected the dtype of the cache"):
        call("paged_attention", {"kv": allocate("bfloat16")[0]})


def test_experts_that_do_not_fit_each_other_are_refused() -> None:
    good = good_arguments()["mix_experts"]
    with pytest.raises(TypeError, match="experts: expected equal sizes and formats"):
        call("mix_experts", {"gate_up": [*good["gate_up"], pack(OUT)], "down": good["down"] * 2})
    with pytest.raises(TypeError, match="experts: expected sizes that fit each other"):
        call("mix_experts", {"down": [pack(OUT)]})
    with pytest.raises(TypeError, match="experts: expected sizes that fit each other"):
        call("mix_experts", {"gate_up": [pack(2 * SIZE)]})
    with pytest.raises(TypeError, match="x: expected the dtype of the packed weight"):
        call("mix_experts", {"x": torch.ones(TOKENS, SIZE).half()})


def test_tokens_without_experts_are_refused() -> None:
    changes = {"expert_ids": torch.zeros(TOKENS, 0, dtype=I64), "expert_weights": torch.ones(TOKENS, 0)}
    with pytest.raises(TypeError, match="expert_ids: expected at least one"):
        call("mix_experts", changes)


def test_numpy_arrays_are_read_as_well_as_tensors() -> None:
    x, result = np.ones((TOKENS, SIZE), np.float32), np.empty((TOKENS, OUT), np.float32)
    call("linear", {"x": x, "residual": np.ones((TOKENS, OUT), np.float32), "result": result})
    assert (result == SIZE + 1).all()


def test_the_number_of_threads_is_checked() -> None:
    kernels = native.CpuKernels(native.supported_isas()[0], 1)
    with pytest.raises(ValueError, match="threads must be within 1 and 256"):
        kernels.threads = 0


def test_an_instruction_set_that_does_not_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "sse9")
    with pytest.raises(KernelError, match=r"KILOTRON_CPU_ISA=sse9 does not run here; what runs: .*avx2"):
        CpuBackend()


def test_a_forced_instruction_set_is_taken_and_named() -> None:
    for isa in native.supported_isas():
        assert make_cpu(isa).name == f"cpu ({isa})"


def test_the_choice_says_why_and_bad_names_are_refused() -> None:
    assert isinstance(choose_backend("auto", "cpu").backend, CpuBackend)
    assert choose_backend("auto", "cpu").reason
    assert type(choose_backend("reference", "cpu").backend) is ReferenceBackend
    with pytest.raises(KernelError, match="known: auto, cpu, reference"):
        choose_backend("cpus", "cpu")
    with pytest.raises(KernelError, match="do not run on device 'meta'"):
        choose_backend("cpu", "meta")


def test_an_object_that_only_looks_like_an_array_is_refused() -> None:
    with pytest.raises(TypeError, match="x: expected an array"):
        call("linear", {"x": SimpleNamespace(shape=(TOKENS, SIZE), dtype=torch.float32)})
