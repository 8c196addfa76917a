"""Ceilings and trials: the least work is counted right, and copies of operands take turns."""

import pytest
import torch
from torch import Tensor

from kilotron.kernels.reference.backend import ReferenceBackend, ReferenceLinear
from kilotron.kernels.roofline import Ceilings, Work, measure_ceilings
from kilotron.kernels.trials import Trial, TrialFacts, TrialMaker, TrialSizes

SIZES = TrialSizes(
    hidden=64, ffn=96, heads=4, kv_heads=2, head_dim=32, vocab=100, experts=4, experts_per_token=2, expert_ffn=32,
    context=40, most_logits_rows=2,
)  # fmt: skip
IDLE = Trial(TrialFacts("idle", 1, "", Work(0, 0, "float32")), lambda: None)


def test_the_slower_of_memory_and_arithmetic_is_the_bound() -> None:
    ceilings = Ceilings(10.0, {"float32": 100.0}, "a test")

    assert ceilings.least_s(Work(20, 100, "float32")) == 2.0
    assert ceilings.bound_of(Work(20, 100, "float32")) == "memory"
    assert ceilings.least_s(Work(20, 300, "float32")) == 3.0
    assert ceilings.bound_of(Work(20, 300, "float32")) == "arithmetic"


def test_the_higher_of_two_ceilings_counts() -> None:
    first, second = Ceilings(10.0, {"int8": 100.0}, "a test"), Ceilings(11.0, {"int8": 70.0}, "a test")

    assert first.joined_with(second) == Ceilings(11.0, {"int8": 100.0}, "a test")
    assert first.differs_from(second)
    assert not first.differs_from(Ceilings(11.0, {"int8": 90.0}, "a test"))


def test_ceilings_are_measured_with_and_without_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    native = measure_ceilings({"float32", "int8"}, torch.float32, num_bytes=1 << 22)
    monkeypatch.setenv("KILOTRON_CPU_ISA", "abacus")
    torchs = measure_ceilings({"float32", "int8"}, torch.float32, num_bytes=1 << 22)

    assert torchs.measured_with == "torch"
    for ceilings in (native, torchs):
        assert ceilings.bytes_per_s > 1e7
        assert min(ceilings.operations_per_s.values()) > 1e7
        assert set(ceilings.operations_per_s) == {"float32", "int8"}


def test_every_trial_runs_on_plain_torch() -> None:
    maker = TrialMaker(ReferenceBackend(), SIZES, torch.float32, None)
    names = []
    for trial in maker.make([1, 3]):
        trial.run()
        names.append(trial.facts[:2])

    assert len(names) == len(set(names)) == maker.count([1, 3])
    assert ("vocabulary", 3) not in names  # no step asks for so many logits


def test_bytes_count_what_must_be_moved_once() -> None:
    maker = TrialMaker(ReferenceBackend(), SIZES, torch.float32, 4)
    works = {trial.facts.operation: trial.facts.work for trial in maker.make([2])}

    assert works["qkv"].num_bytes == 256 * 64 / 2 + 256 * (4 + 1) + 4 * 2 * (64 + 256)
    assert works["qkv"].format == "int4"
    assert works["fc2"].format == "int4"
    assert works["attention, decode"].num_bytes == 2 * 40 * 4 * 2 * 64 + 2 * 4 * 2 * 128
    assert works["attention, prefill"].num_operations == 4 * 128 * (2 * 40 + 3)


def test_a_trial_is_repeated_three_times_unless_that_is_too_long() -> None:
    assert IDLE.time(0.0).num_repeats == 1
    assert IDLE.time(0.001).num_repeats >= 3


class Witness(ReferenceBackend):
    """Notes which weights it multiplies with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def linear(self, x: Tensor, packed: ReferenceLinear, residual: Tensor | None = None) -> Tensor:
        self.seen.append(packed.weight.data_ptr())
        return super().linear(x, packed, residual)


def test_a_weight_is_used_again_only_after_its_copies() -> None:
    witness = Witness()
    trial = next(TrialMaker(witness, SIZES, torch.float32, None).make([1]))
    for _ in range(257):
        trial.run()

    assert len(set(witness.seen)) == 256
    assert witness.seen[0] == witness.seen[-1]
