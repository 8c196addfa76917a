"""What `--profile` tells on standard error: where the time of all steps went, and where the trace is."""

from collections.abc import Iterable

from kilotron.cli.output import format_table
from kilotron.trace import Total, Trace

_HEADER = ("operation", "calls", "total ms", "us/call", "share")
_OPERATION, _HOP, _STEP = "operation", "hop", "step"
_HOP_NAMES = {
    "run": "model, outside of operations",
    "generate": "rows for the sampler",
    "step": "between the calls of a step",
}


def describe_profile(trace: Trace) -> str:
    """A table of the operations and one of the time outside of them, and the name of the file."""
    totals = trace.totals()
    steps = next((total for total in totals if total.category == _HOP and total.name == _STEP), None)
    if steps is None:
        return f"no step was taken; the trace is in {trace.path}"
    operations = _rows((total for total in totals if total.category == _OPERATION), steps.seconds)
    hops = [total._replace(name=_HOP_NAMES.get(total.name, total.name)) for total in totals if total.category == _HOP]
    outside_s = sum(hop.own_seconds for hop in hops)
    rows = [*operations, ("", "", "", "", ""), *_rows(hops, steps.seconds)]
    lines = [
        format_table(rows, _HEADER, right=(1, 2, 3, 4)),
        f"{steps.num_calls} steps took {steps.seconds:.3f} s, {_percent(outside_s, steps.seconds)} of it outside of "
        f"operations; the trace is in {trace.path}",
    ]
    if trace.num_dropped:
        lines.append(f"the trace was full: {trace.num_dropped} later spans are in this table only")
    return "\n".join(lines)


def _rows(totals: Iterable[Total], all_s: float) -> list[tuple[object, ...]]:
    """Most time first."""
    return [
        (
            total.name,
            total.num_calls,
            f"{total.own_seconds * 1e3:.1f}",
            f"{total.own_seconds * 1e6 / total.num_calls:.1f}",
            _percent(total.own_seconds, all_s),
        )
        for total in sorted(totals, key=lambda total: -total.own_seconds)
    ]


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %"
