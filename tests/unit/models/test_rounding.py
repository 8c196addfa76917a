"""Rounded weights are near the plain ones, exact where they can be, and only those that should be are rounded."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kilotron.checkpoints.huggingface import HuggingFaceCheckpoint
from kilotron.checkpoints.weight_names import rearrange
from kilotron.kernels.interface import QuantizedWeight
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.models.gpt_model import GPTModel
from kilotron.models.quantization.rounding import Rounding
from kilotron.models.quantization.row_chunks import for_row_chunks
from kilotron.models.quantization.stacking import rearrange_rows
from kilotron.models.registry import read_transformer_config
from kilotron.models.weight_loading import load_weights
from parity.model_runner import ModelRunner
from parity.tiny_models import make_tiny_model
from unit.models.packed_matrices import gptq
from unit.models.quantized_folders import LLAMA, MIXTRAL, quantized_tensors, write_folder
from unit.models.test_quantized_checkpoints import load

INT8 = Rounding(bits=8, group_size=None)
INT4 = Rounding(bits=4, group_size=64)
CPU = torch.device("cpu")


def rounded(weight: Tensor, rounding: Rounding) -> QuantizedWeight:
    result = rounding.quantize(weight, torch.float32, CPU)
    assert isinstance(result, QuantizedWeight)
    assert (result.values.dtype, result.scales.dtype, result.zeros.dtype) == (torch.int8, torch.float32, torch.int8)
    assert result.shape == tuple(weight.shape)
    return result


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def nearest_4_bit_error(weight: Tensor, group_size: int) -> Tensor:
    """Square error of each group [n] when its whole range is divided evenly and nothing is searched."""
    groups = weight.reshape(-1, group_size)
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scale = ((high - low) / 15)[:, None]
    zero = (-low[:, None] / scale).round()
    values = (groups / scale + zero).round().clamp(0, 15)
    return ((values - zero) * scale - groups).square().sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_8_bits_are_off_by_half_a_step_at_most(dtype: torch.dtype) -> None:
    weight = normal(7, 100).to(dtype)
    result = rounded(weight, INT8)
    assert ((result.dequantize() - weight.float()).abs() <= result.scales * 0.5001).all()
    assert result.values.abs().amax(1).tolist() == [127] * 7
    assert not result.zeros.any()


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_4_bits_are_no_worse_than_an_even_division_of_the_range(group_size: int) -> None:
    weight = normal(33, 256)
    result = rounded(weight, Rounding(bits=4, group_size=group_size))
    error = (result.dequantize() - weight).reshape(-1, group_size).square().sum(1)
    even = nearest_4_bit_error(weight, group_size)
    assert (error <= even * 1.0001).all()
    assert error.sum() < 0.98 * even.sum()
    assert result.group_size == group_size
    assert (result.values.amin().item(), result.values.amax().item()) == (0, 15)
    assert 0 <= result.zeros.amin().item() <= result.zeros.amax().item() <= 15


def test_weights_on_a_grid_come_back_exactly() -> None:
    generator = torch.Generator().manual_seed(5)
    eight = torch.randint(-127, 128, (6, 40), generator=generator)
    four = torch.randint(0, 16, (6, 128), generator=generator)
    eight[:, 0], four[:, ::64], four[:, 1::64] = 127, 0, 15
    assert torch.equal(rounded(eight * 0.25, INT8).values, eight.to(torch.int8))
    result = rounded((four - 5) * 0.25, INT4)
    assert torch.equal(result.values, four.to(torch.int8))
    assert result.zeros.unique().tolist() == [5]
    torch.testing.assert_close(result.scales, torch.full((6, 2), 0.25))


@pytest.mark.parametrize("rounding", [INT8, INT4])
@pytest.mark.parametrize("value", [0.0, 0.7, -0.7, 1e-30, 1e-39, 3e38, -1e-45])
def test_rows_of_one_value_keep_it(rounding: Rounding, value: float) -> None:
    weight = torch.full((2, 64), value)
    torch.testing.assert_close(rounded(weight, rounding).dequantize(), weight, rtol=1e-6, atol=1e-38)


@pytest.mark.parametrize("rounding", [INT8, INT4])
def test_a_weight_of_zero_stays_zero(rounding: Rounding) -> None:
    weight = normal(8, 64).abs() + 1
    weight[:, ::3] = 0
    assert not rounded(weight, rounding).dequantize()[:, ::3].any()


@pytest.mark.parametrize("rounding", [INT8, INT4])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_are_not_hidden_and_spoil_no_other_row(rounding: Rounding, poison: float) -> None:
    weight = normal(3, 64)
    weight[1, 7] = poison
    plain = rounded(weight, rounding).dequantize()
    assert not plain[1].isfinite().all()
    assert torch.equal(plain[::2], rounded(weight[::2], rounding).dequantize())


@pytest.mark.parametrize("rounding", [INT8, INT4])
def test_rows_are_rounded_on_their_own_in_any_layout(rounding: Rounding) -> None:
    weight = normal(600, 1024)  # more than is worked on at once
    whole, lying = rounded(weight, rounding), rounded(weight.t().contiguous().t(), rounding)
    last = rounded(weight[-1:], rounding)
    assert torch.equal(whole.dequantize(), lying.dequantize())
    assert torch.equal(whole.dequantize()[-1:], last.dequantize())


@pytest.mark.parametrize(("columns", "asked", "given"), [(256, 128, 128), (192, 128, 64), (96, 128, 32), (64, 32, 32)])
def test_the_largest_group_size_that_fits_is_taken(columns: int, asked: int, given: int) -> None:
    assert rounded(normal(2, columns), Rounding(bits=4, group_size=asked)).group_size == given


def test_columns_without_a_fitting_group_size_stay_plain() -> None:
    weight = normal(3, 40)
    assert torch.equal(INT4.quantize(weight, torch.bfloat16, CPU), weight.bfloat16())  # type: ignore[arg-type]


def test_routers_embeddings_and_norms_are_not_rounded(tmp_path: Path) -> None:
    _, plain = quantized_tensors(MIXTRAL, gptq(4, 32))
    kernels = load(write_folder(tmp_path / "model", MIXTRAL, plain), INT4)
    layer = [(128, 64), (64, 64), *4 * [(192, 64)], *4 * [(64, 96)]]
    assert kernels.quantized_shapes() == [*layer, *layer, (40, 64)]
    routers = [weight for weight in kernels.given if isinstance(weight, Tensor)]
    assert [tuple(weight.shape) for weight in routers] == [(4, 64), (4, 64)]


def test_a_tied_output_layer_is_rounded_and_the_embedding_stays(tmp_path: Path) -> None:
    tied = LLAMA | {"tie_word_embeddings": True}
    _, plain = quantized_tensors(tied, gptq(4, 32))
    del plain["lm_head.weight"]
    folder = write_folder(tmp_path / "model", tied, plain)
    output = load(folder, INT8).given[0]
    assert isinstance(output, QuantizedWeight)
    table = plain["model.embed_tokens.weight"]
    assert torch.equal(output.dequantize(), rounded(table, INT8).dequantize())
    assert torch.equal(run(folder, INT8).model.embedding.word_embeddings.weight, table)


@pytest.mark.parametrize("kind", ["gpt2", "gpt-neox", "qwen3-moe", "deepseek-v3"])
def test_logits_of_8_bits_are_near_in_every_arrangement_of_weights(tmp_path: Path, kind: str) -> None:
    make_tiny_model(kind, tmp_path)
    tokens = {0: list(range(1, 30))}
    plain, near = run(tmp_path, None).step(tokens)[0], run(tmp_path, INT8).step(tokens)[0]
    assert 0 < (near - plain).abs().mean() < 0.05 * plain.std()


def test_rows_of_a_quantized_matrix_are_rearranged_with_their_scales() -> None:
    weight = rounded(normal(24, 64), INT4)
    moved = rearrange_rows(weight, lambda stored: rearrange(stored, "grouped_qkv", 2, 3))
    assert isinstance(moved, QuantizedWeight)
    assert torch.equal(moved.dequantize(), rearrange(weight.dequantize(), "grouped_qkv", 2, 3))


def run(folder: Path, rounding: Rounding | None) -> ModelRunner:
    with HuggingFaceCheckpoint.open(folder) as checkpoint:
        model = GPTModel(read_transformer_config(checkpoint.config), ReferenceBackend())
        load_weights(model, checkpoint, torch.float32, rounding=rounding)
    return ModelRunner(model, torch.float32)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_every_row_is_worked_on_once_and_the_number_of_threads_stays(num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    visits = torch.zeros(10)
    try:
        for_row_chunks(lambda rows: visits[rows].add_(1), (10, 100), 250)
        in_new_thread = ThreadPoolExecutor(1).submit(torch.get_num_threads).result()
        assert torch.get_num_threads() == in_new_thread == num_threads
    finally:
        torch.set_num_threads(before)
    assert visits.tolist() == [1.0] * 10
