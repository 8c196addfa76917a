"""`kilotron bench kernels`: each operation's time against what memory and arithmetic of this machine allow."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from kilotron.cli.bench import Json, check_positive
from kilotron.cli.failures import UsageError
from kilotron.cli.options import RUN, TEXT, RunOptions, flag
from kilotron.cli.output import format_table, note, print_json
from kilotron.config import InferenceConfig

if TYPE_CHECKING:
    from kilotron.kernels.roofline import Ceilings
    from kilotron.kernels.trials import TrialFacts, TrialMaker, TrialSizes, TrialTime

SizesModel = Annotated[
    str | None,
    Parameter(help="Checkpoint folder or Hugging Face id that gives the sizes. Omitted: those of Qwen3-0.6B."),
]

_DEFAULT_ROWS = "1,4,16,64,256,1024,4096"
_MOST_ROWS = 1 << 16
_BITS = {None: None, "int8": 8, "int4": 4}
_DEFAULTS = InferenceConfig()
_HEADER = ("operation", "shape", "rows", "us", "GB/s", "GFLOP/s", "bound", "roofline")


@Parameter(name="*", group=Group("Sizes (else MODEL's)", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """Fields of TrialSizes; None leaves the model's."""

    hidden: Annotated[int | None, flag("Channels between layers.")] = None
    ffn: Annotated[int | None, flag("Channels inside a feed-forward layer.")] = None
    heads: Annotated[int | None, flag("Query heads.")] = None
    kv_heads: Annotated[int | None, flag("Key-value heads.")] = None
    head_dim: Annotated[int | None, flag("Channels of a head.")] = None
    vocab: Annotated[int | None, flag("Rows of the embedding table.")] = None
    experts: Annotated[int | None, flag("Experts of a mixture.")] = None
    experts_per_token: Annotated[int | None, flag("Experts that each token chooses.")] = None
    expert_ffn: Annotated[int | None, flag("Channels inside an expert.")] = None
    context: Annotated[int | None, flag("Tokens that attention looks back on; with many rows fewer.")] = None

    def given(self) -> dict[str, int]:
        """What was asked for.

        Raises:
            UsageError: a size is not positive.
        """
        values = {name: value for name, value in asdict(self).items() if value is not None}
        check_positive(**values)
        return values


SIZES = SizeOptions()


def kernels(
    model: SizesModel = None,
    /,
    *,
    rows: Annotated[str, flag("Numbers of rows, separated by commas.", **TEXT)] = _DEFAULT_ROWS,
    dtype: Annotated[Literal["bfloat16", "float32", "float16"], flag("Of activations and plain weights.")] = "bfloat16",
    quantization: Annotated[Literal["int8", "int4"] | None, flag("Weights of linear layers and experts.")] = None,
    kernels: Annotated[str, flag("Kernel backend; kilotron env lists them.")] = _DEFAULTS.kernels,
    num_threads: Annotated[
        int | None, flag("CPU threads; by default torch's choice.", "--threads", "--num-threads")
    ] = (None),
    seconds: Annotated[float, flag("Time to repeat each measurement for.")] = 0.2,
    json: Json = False,
    sizes: SizeOptions = SIZES,
    run: RunOptions = RUN,
) -> int:
    """Each kernel operation's time against its roofline: no model needed.

    Before and after, measures how fast this machine's memory is read and how
    many floating-point operations its instructions reach; the better one
    counts. The roofline is the longer of the times that the operation's bytes
    and floating-point operations take at these rates, divided by the median
    time it took. Weights come from memory, as in a model; what is small stays
    in the cache, as there, and may beat the memory.

    Try:
      kilotron bench kernels --rows 1,16,256
      kilotron bench kernels Qwen/Qwen3-0.6B --quantization int8 --json
    """
    numbers = _parse_rows(rows)
    given = sizes.given()
    if num_threads is not None:
        check_positive(threads=num_threads)
    if not seconds >= 0:
        raise UsageError(f"--seconds must be at least 0, not {seconds}")
    with _threads(num_threads):
        trial_sizes = _choose_sizes(model, given)
        maker, facts = _trials_of(trial_sizes, kernels, dtype, quantization)
        before = maker.measure_ceilings()
        measured = _measure(maker, numbers, seconds=seconds, run=run)
        after = maker.measure_ceilings()
    if before.differs_from(after):
        note("memory or arithmetic changed its speed by more than a quarter; other programs use this machine")
    ceilings = before.joined_with(after)
    results = [_result(trial, took, ceilings) for trial, took in measured]
    _report(facts | _facts_of(ceilings), trial_sizes, results, is_json=json)
    return 0


def _trials_of(
    sizes: "TrialSizes", kernels: str, dtype: str, quantization: str | None
) -> "tuple[TrialMaker, dict[str, Any]]":
    import torch

    from kilotron.kernels.registry import choose_backend
    from kilotron.kernels.trials import TrialMaker

    backend = choose_backend(kernels, "cpu").backend
    facts = {
        "kernels": backend.name,
        "dtype": dtype,
        "quantization": quantization or "none",
        "threads": torch.get_num_threads(),
    }
    return TrialMaker(backend, sizes, getattr(torch, dtype), _BITS[quantization]), facts


def _facts_of(ceilings: "Ceilings") -> dict[str, Any]:
    rates = {f"gflop_per_s_{name}": rate / 1e9 for name, rate in sorted(ceilings.operations_per_s.items())}
    return {"gb_per_s": ceilings.bytes_per_s / 1e9} | rates | {"measured_with": ceilings.measured_with}


def _parse_rows(text: str) -> list[int]:
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() and 1 <= int(part) <= _MOST_ROWS for part in parts):
        raise UsageError(f"--rows must be numbers from 1 to {_MOST_ROWS}, such as 1,16,256, not {text!r}")
    return sorted(set(map(int, parts)))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _choose_sizes(model: str | None, given: dict[str, int]) -> "TrialSizes":
    from kilotron.kernels.trials import TrialSizes

    engine = {"block_size": _DEFAULTS.block_size_tokens, "most_logits_rows": _DEFAULTS.max_logits_tokens}
    sizes = TrialSizes(**(engine | (_sizes_of(model) if model is not None else {}) | given))
    if sizes.heads % sizes.kv_heads:
        raise UsageError(f"--kv-heads {sizes.kv_heads} must divide --heads {sizes.heads}")
    if sizes.head_dim % 2:
        raise UsageError(f"--head-dim {sizes.head_dim} must be even, for its halves are rotated")
    if sizes.experts_per_token > sizes.experts:
        raise UsageError(f"--experts-per-token {sizes.experts_per_token} exceeds --experts {sizes.experts}")
    return sizes


def _sizes_of(model: str) -> dict[str, Any]:
    from kilotron.checkpoints.open_checkpoint import open_checkpoint
    from kilotron.models.registry import read_transformer_config

    with open_checkpoint(model) as checkpoint:
        config = read_transformer_config(checkpoint.config)
    sizes = {
        "hidden": config.hidden_size,
        "ffn": config.ffn_hidden_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_query_groups,
        "head_dim": config.kv_channels,
        "vocab": config.vocab_size,
        "activation": config.activation,
        "is_gated": config.gated_linear_unit,
    }
    if config.num_moe_experts is not None and config.moe_ffn_hidden_size is not None:
        sizes |= {
            "experts": config.num_moe_experts,
            "experts_per_token": config.moe_router_topk,
            "expert_ffn": config.moe_ffn_hidden_size,
        }
    return sizes


def _measure(
    maker: "TrialMaker", rows: list[int], *, seconds: float, run: RunOptions
) -> "list[tuple[TrialFacts, TrialTime]]":
    from tqdm import tqdm

    is_shown = sys.stderr.isatty() if run.progress is None else run.progress
    measured = []
    with tqdm(total=maker.count(rows), leave=False, dynamic_ncols=True, disable=not is_shown, file=sys.stderr) as bar:
        for trial in maker.make(rows):
            bar.set_description_str(f"{trial.facts.operation}, {trial.facts.rows} rows")
            measured.append((trial.facts, trial.time(seconds)))
            bar.update()
    return measured


def _result(trial: "TrialFacts", took: "TrialTime", ceilings: "Ceilings") -> dict[str, Any]:
    return {
        "operation": trial.operation,
        "shape": trial.shape,
        "rows": trial.rows,
        "median_s": took.median_s,
        "num_repeats": took.num_repeats,
        "bytes": trial.work.num_bytes,
        "operations": trial.work.num_operations,
        "gb_per_s": trial.work.num_bytes / took.median_s / 1e9,
        "gflop_per_s": trial.work.num_operations / took.median_s / 1e9,
        "bound": ceilings.bound_of(trial.work),
        "roofline_share": ceilings.least_s(trial.work) / took.median_s,
    }


def _report(facts: dict[str, Any], sizes: "TrialSizes", results: list[dict[str, Any]], *, is_json: bool) -> None:
    if is_json:
        print_json(facts | {"sizes": asdict(sizes), "results": results})
        return
    rows = [(name, f"{value:.1f}" if isinstance(value, float) else value) for name, value in facts.items()]
    print(format_table(rows, right=(1,)))
    print()
    lines = [
        (
            one["operation"],
            one["shape"],
            one["rows"],
            f"{one['median_s'] * 1e6:.1f}",
            f"{one['gb_per_s']:.1f}",
            f"{one['gflop_per_s']:.1f}",
            one["bound"],
            f"{one['roofline_share']:.0%}",
        )
        for one in results
    ]
    print(format_table(lines, _HEADER, right=(2, 3, 4, 5, 7)))
