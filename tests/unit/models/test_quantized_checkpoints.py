"""Quantized checkpoints give the logits of the plain weights they stand for, and say what is broken in them."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kilotron.checkpoints.huggingface import HuggingFaceCheckpoint
from kilotron.errors import BrokenCheckpointError, CheckpointError
from kilotron.kernels.interface import Activation, ExpertWeights, QuantizedWeight, Weight
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.models.gpt_model import GPTModel
from kilotron.models.quantization.formats import find_format
from kilotron.models.quantization.rounding import Rounding
from kilotron.models.registry import read_transformer_config
from kilotron.models.weight_loading import load_weights
from parity.model_runner import ModelRunner
from unit.models.packed_matrices import Writer, awq, compressed, compressed_settings, fp8, gptq
from unit.models.quantized_folders import LLAMA, MIXTRAL, QWEN3, quantized_tensors, write_folder, write_pair

PACK, INT8 = "pack-quantized", "int-quantized"
FP8_ROWS = compressed_settings("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"})
FP8_BLOCKS = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 32]}
STAYS = {
    "gptq-4": gptq(4, 32),
    "gptq-4-v2": gptq(4, 32, version=2),
    "gptq-4-channel": gptq(4, -1),
    "gptq-8": gptq(8, 32),
    "awq": awq(32),
    "packed-4": compressed(PACK, 4, "group", 32),
    "packed-4-zeros": compressed(PACK, 4, "group", 32, symmetric=False),
    "packed-4-channel-zeros": compressed(PACK, 4, "channel", symmetric=False),
    "packed-8": compressed(PACK, 8, "channel"),
    "int8-channel": compressed(INT8, 8, "channel"),
    "int8-tensor": compressed(INT8, 8, "tensor"),
    "int8-group": compressed(INT8, 8, "group", 32),
    "naive-4": compressed("naive-quantized", 4, "group", 32),
}
IS_DEQUANTIZED = {
    "act order": (gptq(4, 32, act_order=True), "order of activation"),
    "groups of 16": (awq(16), "groups of 16 in"),
    "8 bits with zeros": (compressed(INT8, 8, "channel", symmetric=False), "8 bits with zero points"),
    "fp8, one scale": (fp8("tensor", {"quant_method": "fp8"}), "8-bit floats"),
    "fp8, blocks": (
        fp8("block", {"quant_method": "fp8", "weight_block_size": [32, 32]}, name="weight_scale_inv"),
        "8-bit floats",
    ),
    "float-quantized": (fp8("channel", FP8_ROWS), "8-bit floats"),
    "float-quantized, blocks": (fp8("block", compressed_settings("naive-quantized", FP8_BLOCKS)), "8-bit floats"),
}


class WitnessBackend(ReferenceBackend):
    """Remembers which weights it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Weight] = []

    def pack_linear(self, weight: Weight, bias: Tensor | None, activation: Activation | None = None) -> Any:
        self.given.append(weight)
        return super().pack_linear(weight, bias, activation)

    def pack_experts(self, weights: ExpertWeights, activation: Activation) -> Any:
        self.given += [*weights.gate_up, *weights.down]
        return super().pack_experts(weights, activation)

    def quantized_shapes(self) -> list[tuple[int, int]]:
        return [weight.shape for weight in self.given if isinstance(weight, QuantizedWeight)]


def load(folder: Path, rounding: Rounding | None = None) -> WitnessBackend:
    kernels = WitnessBackend()
    with HuggingFaceCheckpoint.open(folder) as checkpoint:
        model = GPTModel(read_transformer_config(checkpoint.config), kernels)
        assert load_weights(model, checkpoint, torch.float32, rounding=rounding) == []
    return kernels


def is_as_kernels_need_it(weight: QuantizedWeight) -> bool:
    """As the interface has it: dtypes, ranges, groups, and lying in order."""
    parts = (weight.values, weight.scales, weight.zeros)
    low, high, last_zero = (0, 15, 16) if weight.bits == 4 else (-128, 127, 0)
    return (
        [part.dtype for part in parts] == [torch.int8, torch.float32, torch.int8]
        and all(part.is_contiguous() for part in parts)
        and bool(((weight.values >= low) & (weight.values <= high)).all())
        and bool(((weight.zeros >= 0) & (weight.zeros <= last_zero)).all())
        and (weight.group_size in (32, 64, 128) or (weight.bits == 8 and weight.group_size == weight.shape[1]))
    )


def logits_of(folder: Path) -> Tensor:
    return ModelRunner.load(folder).step({0: list(range(1, 20))})[0]


@pytest.mark.parametrize("name", STAYS)
def test_logits_are_those_of_the_plain_weights_and_matrices_stay_quantized(tmp_path: Path, name: str) -> None:
    quantized, plain = write_pair(tmp_path, LLAMA, STAYS[name])
    if "channel" in name and "-4" in name:  # one group of 96 columns is told as three of 32
        assert {weight.group_size for weight in load(quantized).given if isinstance(weight, QuantizedWeight)} == {
            32,
            64,
        }
    assert torch.equal(logits_of(quantized), logits_of(plain))
    kernels = load(quantized)
    assert kernels.quantized_shapes() == 2 * [(128, 64), (64, 64), (192, 64), (64, 96)]
    assert all(is_as_kernels_need_it(weight) for weight in kernels.given if isinstance(weight, QuantizedWeight))


@pytest.mark.parametrize("name", IS_DEQUANTIZED)
def test_what_kernels_do_not_have_is_dequantized_and_told_once(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer, reason = IS_DEQUANTIZED[name]
    quantized, plain = write_pair(tmp_path, LLAMA, writer)
    assert load(quantized).quantized_shapes() == []
    lines = [record.message for record in caplog.records if reason in record.message]
    assert 1 <= len(lines) == len(caplog.records) <= 2  # groups of 16 come in 64 and in 96 columns
    assert torch.equal(logits_of(quantized), logits_of(plain))


@pytest.mark.parametrize("config", [QWEN3, MIXTRAL], ids=["qwen3", "mixtral"])
@pytest.mark.parametrize("writer", [STAYS["gptq-4"], STAYS["packed-4-zeros"], IS_DEQUANTIZED["fp8, blocks"][0]])
def test_other_architectures_give_the_same_logits(tmp_path: Path, config: dict[str, Any], writer: Writer) -> None:
    quantized, plain = write_pair(tmp_path, config, writer)
    assert torch.equal(logits_of(quantized), logits_of(plain))


def test_experts_are_quantized_one_by_one(tmp_path: Path) -> None:
    quantized, _ = write_pair(tmp_path, MIXTRAL, STAYS["awq"])
    assert load(quantized).quantized_shapes() == 2 * [(128, 64), (64, 64), *4 * [(192, 64)], *4 * [(64, 96)]]


@pytest.mark.parametrize("name", ["gptq-4", "packed-4", "int8-channel"])
def test_modules_that_were_left_plain_are_read_plain(tmp_path: Path, name: str) -> None:
    quantized, plain = write_pair(tmp_path, LLAMA, STAYS[name], plainly=("down_proj",))
    assert load(quantized).quantized_shapes() == 2 * [(128, 64), (64, 64), (192, 64)]
    assert torch.equal(logits_of(quantized), logits_of(plain))


def test_a_plain_checkpoint_loads_after_a_quantized_one_that_failed(tmp_path: Path) -> None:
    writer = STAYS["gptq-4"]
    tensors, plain = quantized_tensors(LLAMA, writer, plainly=("?",))
    tensors["model.layers.0.self_attn.v_proj.g_idx"] += 7
    broken = write_folder(tmp_path / "broken", LLAMA | {"quantization_config": writer.settings}, tensors)
    model = GPTModel(read_transformer_config(LLAMA), ReferenceBackend())
    with HuggingFaceCheckpoint.open(broken) as checkpoint, pytest.raises(BrokenCheckpointError, match="from 7 to 8"):
        load_weights(model, checkpoint, torch.float32)
    folder = write_folder(tmp_path / "plain", LLAMA, plain)
    with HuggingFaceCheckpoint.open(folder) as checkpoint:
        load_weights(model, checkpoint, torch.float32)
    again = ModelRunner(model, torch.float32).step({0: list(range(1, 20))})[0]
    assert torch.equal(again, logits_of(folder))


def test_a_plain_part_beside_quantized_ones_makes_all_of_them_plain(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quantized, plain = write_pair(tmp_path, LLAMA, STAYS["gptq-4"], plainly=("k_proj",))
    assert torch.equal(logits_of(quantized), logits_of(plain))
    assert "4 quantized matrices were dequantized to torch.float32: side by side with" in caplog.text


def test_a_last_group_that_is_not_full_makes_its_matrix_plain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quantized, plain = write_pair(tmp_path, LLAMA, gptq(4, 64))
    assert torch.equal(logits_of(quantized), logits_of(plain))
    assert "2 quantized matrices were dequantized to torch.float32: groups of 64 in 96 columns" in caplog.text
    assert load(quantized).quantized_shapes() == 2 * [(128, 64), (64, 64), (192, 64)]


def test_groups_longer_than_the_columns_are_one_group(tmp_path: Path) -> None:
    quantized, plain = write_pair(tmp_path, LLAMA, gptq(4, 128))
    assert torch.equal(logits_of(quantized), logits_of(plain))
    assert len(load(quantized).quantized_shapes()) == 8


def test_quantized_tensors_without_a_place_are_told(tmp_path: Path) -> None:
    writer = STAYS["packed-4"]
    tensors, _ = quantized_tensors(LLAMA, writer, plainly=("?",))
    tensors["model.layers.9.mlp.up_proj.weight_packed"] = torch.zeros(1)
    folder = write_folder(tmp_path / "model", LLAMA | {"quantization_config": writer.settings}, tensors)
    with HuggingFaceCheckpoint.open(folder) as checkpoint:
        model = GPTModel(read_transformer_config(checkpoint.config), ReferenceBackend())
        leftovers = load_weights(model, checkpoint, torch.float32)
    assert leftovers == ["model.layers.9.mlp.up_proj.weight_packed"]


def test_activations_are_left_alone_and_that_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = STAYS["int8-channel"]
    settings = compressed_settings(
        INT8, writer.settings["config_groups"]["group_0"]["weights"], input_activations={"num_bits": 8}
    )
    tensors, _ = quantized_tensors(LLAMA, writer, plainly=("?",))
    tensors["model.layers.0.self_attn.q_proj.input_scale"] = torch.ones(1)
    caplog.set_level(logging.INFO)
    load(write_folder(tmp_path / "model", LLAMA | {"quantization_config": settings}, tensors))
    assert caplog.messages == ["only the weights of the checkpoint are quantized here; activations stay as they are"]


def test_gptq_exceptions_have_their_own_bits_and_groups(tmp_path: Path) -> None:
    dynamic = {r"+:.*\.down_proj": {"bits": 8, "group_size": -1}, r"-:.*\.o_proj": {}}
    settings = gptq(4, 32, dynamic=dynamic).settings
    tensors, plain = quantized_tensors(LLAMA, gptq(4, 32), plainly=("o_proj",))
    others, other_plain = quantized_tensors(LLAMA, gptq(8, -1), plainly=("?",))
    tensors |= {name: value for name, value in others.items() if "down_proj" in name}
    plain |= {name: value for name, value in other_plain.items() if "down_proj" in name}
    quantized = write_folder(tmp_path / "quantized", LLAMA | {"quantization_config": settings}, tensors)
    assert torch.equal(logits_of(quantized), logits_of(write_folder(tmp_path / "plain", LLAMA, plain)))


def test_compressed_schemes_go_by_name_then_pattern_then_class(tmp_path: Path) -> None:
    first, second = compressed(PACK, 4, "group", 32), compressed(INT8, 8, "channel")
    tensors, plain = quantized_tensors(LLAMA, first, plainly=("?",))
    others, other_plain = quantized_tensors(LLAMA, second, plainly=("?",))
    tensors = {name: value for name, value in tensors.items() if "mlp" not in name}
    tensors |= {name: value for name, value in others.items() if "mlp" in name}
    plain |= {name: value for name, value in other_plain.items() if "mlp" in name}
    settings = dict(first.settings)
    group = second.settings["config_groups"]["group_0"] | {"targets": ["re:.*mlp.*"], "format": INT8}
    settings["config_groups"] = settings["config_groups"] | {"group_1": group}
    quantized = write_folder(tmp_path / "quantized", LLAMA | {"quantization_config": settings}, tensors)
    assert torch.equal(logits_of(quantized), logits_of(write_folder(tmp_path / "plain", LLAMA, plain)))


Q_PROJ = "model.layers.0.self_attn.q_proj."
BROKEN: dict[str, tuple[str, str, Callable[[Tensor], Tensor] | None, str]] = {
    "missing": ("gptq-4", "scales", None, r"'{}scales' of shape \(2, 64\) is missing from .*model\.safetensors"),
    "shape": ("gptq-4", "qzeros", lambda old: old[:1], r"'{}qzeros' has shape \(1, 8\), expected \(2, 8\)"),
    "dtype": ("awq", "scales", lambda old: old.int(), r"'{}scales' has dtype I32, expected one of F32, BF16, F16"),
    "g_idx": ("gptq-4", "g_idx", lambda old: old[1:], r"'{}g_idx' has shape \(63,\), expected \(64,\)"),
    "g_idx value": (
        "gptq-4",
        "g_idx",
        lambda old: old + 1,
        r"'{}g_idx' has values from 1 to 2, expected groups from 0 to 1",
    ),
    "4-bit value": ("naive-4", "weight", lambda old: old - 1, r"'{}weight' has values outside of -8 to 7"),
    "packed": ("packed-4", "weight_packed", lambda old: old[:, 1:], r"'{}weight_packed' has shape \(64, 7\), expected"),
    "values": ("int8-channel", "weight", None, r"'{}weight' of shape \(64, 64\) is missing"),
    "scale": ("int8-channel", "weight_scale", lambda old: old[1:], r"shape \(63, 1\), expected \(64, 1\) or \(64,\)"),
    "zeros": ("packed-4-zeros", "weight_zero_point", None, r"'{}weight_zero_point' of shape \(8, 2\) is missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_companion_is_named_with_file_expected_and_found(tmp_path: Path, name: str) -> None:
    writer, suffix, change, message = BROKEN[name]
    tensors, _ = quantized_tensors(LLAMA, STAYS[writer], plainly=("?",))
    old = tensors.pop(Q_PROJ + suffix)
    tensors |= {} if change is None else {Q_PROJ + suffix: change(old)}
    folder = write_folder(tmp_path / "model", LLAMA | {"quantization_config": STAYS[writer].settings}, tensors)
    with pytest.raises(BrokenCheckpointError, match=r"model\.safetensors") as error:
        load(folder)
    assert error.match(message.format(Q_PROJ.replace(".", r"\.")))


def test_fp8_without_its_scale_is_broken(tmp_path: Path) -> None:
    writer = IS_DEQUANTIZED["fp8, blocks"][0]
    tensors, _ = quantized_tensors(LLAMA, writer, plainly=("?",))
    del tensors[Q_PROJ + "weight_scale_inv"]
    folder = write_folder(tmp_path / "model", LLAMA | {"quantization_config": writer.settings}, tensors)
    with pytest.raises(BrokenCheckpointError, match=r"q_proj\.weight_scale_inv' of shape \(2, 2\) is missing"):
        load(folder)


INT_GROUP = {"num_bits": 4, "strategy": "group", "group_size": 32}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "bitsandbytes"}, "quantized with 'bitsandbytes', .* known: awq, compressed-tensors, fp8, gptq"),
    ({"bits": 4}, "quantized with 'unknown'"),
    (gptq(4, 32).settings | {"bits": 3}, "3 bits are not read, only 4 and 8"),
    (gptq(4, 32).settings | {"group_size": 0}, "group_size = 0"),
    (gptq(4, 32, checkpoint_format="marlin").settings, "checkpoint_format = 'marlin': one of gptq, gptq_v2 is needed"),
    (gptq(4, 32, dynamic={"(": {}}).settings, r"dynamic has '\(', which is no pattern"),
    (awq(32).settings | {"version": "gemv"}, "version = 'gemv': gemm"),
    (awq(32).settings | {"bits": 8}, "8 bits are not read, only 4"),
    ({"quant_method": "awq", "bits": 4}, "no 'group_size'"),
    (compressed_settings("nvfp4-pack-quantized", INT_GROUP), "format = 'nvfp4-pack-quantized': one of pack-quantized,"),
    (compressed_settings(PACK, INT_GROUP | {"num_bits": 3}), "num_bits = 3: 4 or 8 is needed"),
    (compressed_settings(PACK, INT_GROUP | {"strategy": "token"}), "strategy = 'token'"),
    (compressed_settings(PACK, INT_GROUP | {"group_size": None}), "group_size = None: a count"),
    (compressed_settings(PACK, FP8_BLOCKS | {"block_structure": None}), "block_structure = None: a list of two counts"),
    (compressed_settings(PACK, INT_GROUP, targets=["re:("]), r"targets has '\(', which is no pattern"),
    (compressed_settings(PACK, INT_GROUP) | {"sparsity_config": {"format": "marlin-24"}}, "'marlin-24'; only 'dense'"),
    ({"quant_method": "fp8", "weight_block_size": [128]}, r"weight_block_size = \[128\]: a list of two counts"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_that_are_not_read_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_format({"quantization_config": settings})


def test_settings_are_found_wherever_they_are() -> None:
    settings = STAYS["awq"].settings
    for config in ({"quantization_config": settings}, {"text_config": {"quantization_config": settings}}):
        found = find_format(config)
        assert found is not None
        assert found.description == "awq, 4 bits in groups of 32"
    old = find_format(
        {"compression_config": {"format": PACK, "config_groups": STAYS["packed-8"].settings["config_groups"]}}
    )
    assert old is not None
    assert old.description == "compressed-tensors, 8 bits per channel"
    assert find_format({"quantization_config": None}) is None


@pytest.mark.parametrize("value", [-100, 100])
def test_zero_points_that_4_bits_cannot_have_make_a_matrix_plain(tmp_path: Path, value: int) -> None:
    writer = compressed("naive-quantized", 4, "group", 32, symmetric=False)
    tensors, _ = quantized_tensors(LLAMA, writer, plainly=("?",))
    zeros, scales = (tensors[f"{Q_PROJ.replace('q_proj', 'o_proj')}weight_{name}"] for name in ("zero_point", "scale"))
    zeros.fill_(value)
    given = load(write_folder(tmp_path / "model", LLAMA | {"quantization_config": writer.settings}, tensors)).given[1]
    values = tensors[Q_PROJ.replace("q_proj", "o_proj") + "weight"]
    assert isinstance(given, Tensor)
    assert torch.equal(given, (values.float() - value) * scales.float().repeat_interleave(32, 1))


def test_compressed_columns_in_order_of_activation_are_read(tmp_path: Path) -> None:
    writer = compressed(PACK, 4, "group", 32)
    tensors, _ = quantized_tensors(LLAMA, writer, plainly=("?",))
    weights = writer.settings["config_groups"]["group_0"]["weights"] | {"actorder": "group"}
    for name in [name for name in tensors if name.endswith("weight_packed")]:
        columns = 8 * tensors[name].shape[1]
        tensors[name.replace("packed", "g_idx")] = torch.arange(columns - 1, -1, -1, dtype=torch.int32) // 32
    config = LLAMA | {"quantization_config": compressed_settings(PACK, weights)}
    given = load(write_folder(tmp_path / "model", config, tensors)).given[1]
    plain = load(write_folder(tmp_path / "other", LLAMA | {"quantization_config": writer.settings}, tensors)).given[1]
    assert isinstance(plain, QuantizedWeight)
    turned = dataclasses.replace(plain, scales=plain.scales.flip(1)).dequantize()
    assert torch.equal(given, turned)


def test_zero_points_may_be_16(tmp_path: Path) -> None:
    writer = gptq(4, 32)
    tensors, _ = quantized_tensors(LLAMA, writer, plainly=("?",))
    tensors[Q_PROJ + "qzeros"] = torch.full_like(tensors[Q_PROJ + "qzeros"], -1)  # all 15, and one more
    given = load(write_folder(tmp_path / "model", LLAMA | {"quantization_config": writer.settings}, tensors)).given[0]
    assert isinstance(given, QuantizedWeight)
    assert given.zeros[:64].unique().tolist() == [16]
