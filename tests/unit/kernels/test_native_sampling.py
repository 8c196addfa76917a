"""Tests of the native passes over rows of logits, on every instruction set, against whole numbers of numpy."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from kilotron.kernels.interface import TemperedRows

native = pytest.importorskip("kilotron.kernels.cpu._native")

WIDTHS = [1, 15, 16, 17, 1000, 4096, 4097, 40_000]


@pytest.fixture(scope="module", params=[(isa, threads) for isa in native.supported_isas() for threads in (1, 2)])
def kernels(request: pytest.FixtureRequest) -> Any:
    return native.CpuKernels(*request.param)


def random_logits(rows: int, columns: int, scale: float = 4.0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns)) * scale


class Found(NamedTuple):
    best: Tensor
    ids: Tensor


def find_best(kernels: Any, logits: Tensor) -> Found:
    found = Found(torch.empty(len(logits)), torch.empty(len(logits), dtype=torch.int64))
    kernels.max_of_rows(logits, *found)
    return found


def temper(kernels: Any, logits: Tensor, temperature: float = 1.0) -> TemperedRows:
    best, _ = find_best(kernels, logits)
    return TemperedRows(logits, torch.arange(len(logits)), best, torch.full_like(best, 1 / temperature))


def weigh(kernels: Any, exponents: Tensor) -> Tensor:
    weights = torch.empty(exponents.shape, dtype=torch.int64)
    kernels.weigh(exponents, weights)
    return weights


def total(kernels: Any, rows: TemperedRows, thresholds: Tensor | None = None) -> list[int]:
    totals = torch.empty(len(rows.rows), dtype=torch.int64)
    kernels.sum_weights(*rows, thresholds, totals)
    return totals.tolist()


def list_greatest(kernels: Any, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    values, ids = torch.empty(len(logits), count), torch.empty(len(logits), count, dtype=torch.int64)
    kernels.list_greatest(logits, torch.arange(len(logits)), values, ids)
    return values, ids


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("decimals", [0, 6])
def test_the_greatest_logit_comes_with_its_lowest_id(kernels: Any, columns: int, decimals: int) -> None:
    logits = random_logits(7, columns).round(decimals=decimals)
    logits[1] = -torch.inf
    logits[2, columns // 2] = torch.inf

    best, ids = find_best(kernels, logits)

    assert best.tolist() == logits.amax(1).tolist()
    assert ids.tolist() == logits.numpy().argmax(1).tolist()


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_row_with_nan_gives_nan_and_spoils_no_other(kernels: Any, columns: int) -> None:
    logits = random_logits(6, columns)
    for row, place in ((1, 0), (3, columns - 1), (4, columns // 2)):
        logits[row, place] = torch.nan

    best, ids = find_best(kernels, logits)

    assert best.isnan().tolist() == [False, True, False, True, True, False]
    assert ((ids >= 0) & (ids < columns)).all()


def test_a_weight_is_e_to_the_exponent_rounded_down(kernels: Any) -> None:
    exponents = -torch.linspace(0, 40, 30_001)[None]
    exponents[0, -1] = -torch.inf

    weights = weigh(kernels, exponents).double()

    exact = exponents.double().exp() * 2.0**44
    assert ((weights - exact).abs() <= exact * 2**-22 + 1).all()
    assert weights[0, [0, -1]].tolist() == [2.0**44, 0]
    assert (weights[exponents < -30.5] == 0).all()


def test_a_weight_does_not_depend_on_its_place(kernels: Any) -> None:
    exponents = -torch.rand(1, 300, generator=torch.Generator().manual_seed(0)) * 33
    weights = weigh(kernels, exponents)

    for start in range(20):
        for length in (1, 3, 15, 17, 31, 33, 150):
            part = slice(start, start + length)
            assert torch.equal(weigh(kernels, exponents[:, part].clone()), weights[:, part])


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_totals_are_the_sums_of_the_weights_that_reach_the_threshold(
    kernels: Any, columns: int, temperature: float
) -> None:
    logits = random_logits(6, columns)
    logits[2, columns // 2 :] = -torch.inf
    logits[2, 0] = 1.0
    rows = temper(kernels, logits, temperature)
    thresholds = torch.tensor([-torch.inf, -5.0, -3.0, 0.0, 1.0, torch.inf])

    exponents = rows.exponents()
    weights = weigh(kernels, exponents)
    kept = weights * (exponents >= thresholds[:, None])

    assert total(kernels, rows) == weights.sum(1).tolist()
    assert total(kernels, rows, thresholds) == kept.sum(1).tolist()
    assert total(kernels, rows, thresholds)[4:] == [0, 0]


def test_the_total_of_equals_is_exact(kernels: Any) -> None:
    rows = temper(kernels, torch.zeros(2, 2**19 - 1))

    assert total(kernels, rows) == [(2**19 - 1) * 2**44] * 2


def test_chosen_rows_of_a_wider_matrix_are_read_in_their_order(kernels: Any) -> None:
    wide = random_logits(5, 1000)
    logits, chosen = wide[:, :333], torch.tensor([3, 0, 3])
    best, ids = find_best(kernels, logits)
    values, listed = torch.empty(3, 1), torch.empty(3, 1, dtype=torch.int64)

    kernels.list_greatest(logits, chosen, values, listed)

    everything = total(kernels, temper(kernels, logits.clone()))
    rows = TemperedRows(logits, chosen, best[chosen], torch.ones(3))
    assert total(kernels, rows) == [everything[row] for row in chosen]
    assert listed[:, 0].tolist() == ids[chosen].tolist()


@pytest.mark.parametrize("columns", WIDTHS)
def test_draws_agree_with_a_walk_in_whole_numbers(kernels: Any, columns: int) -> None:
    rows = temper(kernels, random_logits(40, columns), 1.5)
    uniforms = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    uniforms[:2] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    thresholds = torch.linspace(-9, 0, 40)
    tokens = torch.empty(40, dtype=torch.int64)

    kernels.draw(*rows, thresholds, uniforms, tokens)

    exponents = rows.exponents()
    kept = (weigh(kernels, exponents) * (exponents >= thresholds[:, None])).numpy()
    for row, token in enumerate(tokens.tolist()):
        cumulative = kept[row].cumsum()
        target = int(uniforms[row].item() * float(cumulative[-1]))
        assert token == np.flatnonzero(cumulative > target)[0]


def test_a_draw_from_nothing_stays_within_the_vocabulary(kernels: Any) -> None:
    logits = random_logits(3, 5000)
    logits[0, 7] = torch.nan
    logits[1, 8] = torch.inf
    rows = temper(kernels, logits)
    tokens = torch.empty(3, dtype=torch.int64)

    kernels.draw(*rows, torch.full((3,), 1.0), torch.full((3,), 0.5, dtype=torch.float64), tokens)

    assert ((tokens >= 0) & (tokens < 5000)).all()


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("count", [1, 6, 64, 1024, 40_000])
@pytest.mark.parametrize("decimals", [0, 6])
def test_the_greatest_are_listed_in_order_and_of_equals_the_lowest_ids(
    kernels: Any, columns: int, count: int, decimals: int
) -> None:
    logits = random_logits(5, columns).round(decimals=decimals)
    logits[1] = 0.0
    logits[2, : columns // 2] = -torch.inf
    logits[3, columns // 3] = torch.inf
    count = min(count, columns)

    values, ids = list_greatest(kernels, logits, count)

    expected = torch.sort(logits, dim=1, descending=True, stable=True)
    assert torch.equal(values, expected.values[:, :count])
    assert torch.equal(ids, expected.indices[:, :count])


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_list_of_a_row_with_nan_holds_ids_and_spoils_no_other(kernels: Any, columns: int) -> None:
    logits = random_logits(3, columns)
    clean = list_greatest(kernels, logits, columns)
    logits[1] = torch.nan

    values, ids = list_greatest(kernels, logits, columns)

    assert ((ids >= 0) & (ids < columns)).all()
    assert torch.equal(ids[::2], clean[1][::2])
    assert torch.equal(values[::2], clean[0][::2])


def test_no_rows_are_no_work(kernels: Any) -> None:
    none, no_ids = torch.empty(0), torch.empty(0, dtype=torch.int64)

    find_best(kernels, torch.empty(0, 50))
    kernels.draw(torch.ones(2, 50), no_ids, none, none, None, none.double(), no_ids)


@pytest.mark.parametrize(
    "bad", [{"rows": torch.tensor([2])}, {"best": torch.zeros(1).double()}, {"best": torch.zeros(2)}]
)
def test_arguments_that_do_not_fit_are_refused(kernels: Any, bad: dict[str, Tensor]) -> None:
    rows = TemperedRows(torch.zeros(2, 50), torch.tensor([1]), torch.zeros(1), torch.ones(1))

    with pytest.raises(TypeError, match=next(iter(bad))):
        total(kernels, rows._replace(**bad))
