"""Workloads A-F through kilotron and other systems, interleaved in one run: medians, ratios, shares of the limits.

kilotron and, where it is installed beside it, transformers always take part; others when a --peer names them:

    python benchmarks/bench_workloads.py --quick
    python benchmarks/bench_workloads.py --peer openvino=OV_VENV/bin/python --peer llama.cpp=BUILD/bin/llama-server \\
        --llama-source LLAMA_CPP --json out.json --plot out.png

See benchmarks/README.md for what the workloads are, how to set up the peers, and which runs count.
"""

import argparse
import importlib.util
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from workloads.conversions import convert, make_checkpoint
from workloads.definitions import QUICK_DIVISOR, WORKLOADS
from workloads.foreign_load import LoadMeter, wait_until_quiet
from workloads.machine_limits import MachineLimits, measure_limits
from workloads.plot import save_plot
from workloads.report import Report
from workloads.session import Session, Settings, tell
from workloads.shapes import SHAPES
from workloads.summary import summarize
from workloads.systems import System, SystemFailure, parse_options, parse_peer

DEFAULT_FOLDER = Path("~/.cache/kilotron-benchmarks")
# As `make bench` runs it: minutes. Figures to be quoted take three or more.
DEFAULT_REPETITIONS = 1


def main(words: list[str] | None = None) -> int:
    """Measures, prints the report, writes what was asked for."""
    arguments = parse_arguments(words)
    folder = arguments.folder.expanduser().resolve()
    systems, failures = prepare_systems(arguments, folder)
    settings = Settings(
        letters=arguments.workloads,
        num_repetitions=1 if arguments.quick else arguments.repetitions,
        num_retries=0 if arguments.quick else arguments.retries,
        num_threads=arguments.threads,
        quiet_timeout_s=0 if arguments.quick else arguments.quiet_timeout,
        divisor=QUICK_DIVISOR if arguments.quick else 1,
        log_folder=folder / "logs",
    )
    limits = measure_quiet_limits(settings)
    session = Session(systems, settings)
    try:
        session.run()
    except KeyboardInterrupt:
        tell("interrupted: reporting what there is")
    limits = limits.best_of(measure_quiet_limits(settings))
    shape = SHAPES[arguments.model]
    report = Report(
        shape=shape,
        num_threads=settings.num_threads,
        divisor=settings.divisor,
        limits=limits,
        systems=systems,
        facts=session.facts,
        failures=failures | session.failures,
        runs=session.runs,
        lines=summarize(session.runs, systems, shape, limits.rates, settings.divisor),
    )
    print(report.to_markdown())
    if arguments.json:
        arguments.json.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    if arguments.plot and session.runs:
        save_plot(report, arguments.plot)
    return 1 if report.failures else 0


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    """What the command line asks for, checked before anything takes time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=sorted(SHAPES), default="qwen3-0.6b", help="shape of the random model")
    add("--folder", type=Path, default=DEFAULT_FOLDER, help="keeps models and logs (default: %(default)s)")
    add("--workloads", default="".join(WORKLOADS), help="letters (default: all)")
    add(
        "--repetitions",
        type=int,
        default=DEFAULT_REPETITIONS,
        help="runs that count, per system and workload (default: %(default)s)",
    )
    add("--retries", type=int, default=2, help="further runs in place of disturbed ones (default: %(default)s)")
    add("--quiet-timeout", type=float, default=30, metavar="S", help="longest wait for a quiet machine before a run")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every system (default: all CPUs)")
    add("--quick", action="store_true", help="one short run each, whatever others do: to try it")
    add("--peer", action="append", default=[], metavar="NAME[:VARIANT]=COMMAND", help="another system; repeatable")
    add("--llama-source", type=Path, help="llama.cpp's sources, whose converter makes GGUF files")
    add("--kilotron-option", action="append", default=[], metavar="NAME:KEY=VALUE", help="a variant; repeatable")
    add("--peer-option", action="append", default=[], metavar="NAME:KEY=VALUE", help="a peer's setting; repeatable")
    add("--without", action="append", default=[], metavar="NAME", help="leave out a system; repeatable")
    add("--json", type=Path, metavar="FILE", help="writes all figures and every run")
    add("--plot", type=Path, metavar="FILE.png", help="writes a picture; needs matplotlib")
    arguments = parser.parse_args(words)
    unknown = set(arguments.workloads) - set(WORKLOADS)
    if unknown:
        parser.error(f"unknown workloads {''.join(sorted(unknown))}; known: {''.join(WORKLOADS)}")
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    try:
        arguments.systems = choose_systems(arguments)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def choose_systems(arguments: argparse.Namespace) -> list[System]:
    """kilotron, its variants, transformers, then the peers as named."""
    variants = parse_options(arguments.kilotron_option)
    systems = [System("kilotron"), *(System("kilotron", name, options=given) for name, given in variants.items())]
    peers = [parse_peer(text) for text in arguments.peer]
    has_transformers = any(peer.kind == "transformers" for peer in peers)
    if not has_transformers and importlib.util.find_spec("transformers") is not None:
        systems.append(System("transformers"))
    systems += peers
    settings = parse_options(arguments.peer_option)
    names = [system.name for system in systems]
    for name in (*settings, *arguments.without):
        if name not in names:
            raise ValueError(f"no system {name!r} takes part; there are: {', '.join(names)}")
    return [
        replace(system, options=system.options | settings.get(system.name, {}))
        for system in systems
        if system.name not in arguments.without
    ]


def prepare_systems(arguments: argparse.Namespace, folder: Path) -> tuple[list[System], dict[str, str]]:
    """The systems with their models, which are made where they are missing, and those whose models cannot be made."""
    tell(f"preparing models in {folder}")
    checkpoint = make_checkpoint(arguments.model, folder)
    ready, failures = [], {}
    for system in arguments.systems:
        try:
            ready.append(replace(system, model=convert(system, checkpoint, arguments.llama_source)))
        except SystemFailure as error:
            failures[system.name] = f"{system.name}: {error}"
            tell(f"{system.name} is left out: {error}")
    return ready, failures


def measure_quiet_limits(settings: Settings) -> MachineLimits:
    """The machine's limits; others' work is waited for, and told where it goes on."""
    tell("measuring the machine")
    wait_until_quiet(settings.quiet_timeout_s)
    with LoadMeter() as load:
        limits = measure_limits(settings.num_threads)
    if load.is_counted:
        return limits
    disturbed = f"too low: others used {load.foreign:.0%} of the machine"
    return limits._replace(note="; ".join(filter(None, [limits.note, disturbed])))


if __name__ == "__main__":
    # Ended from outside it must not leave loaded systems behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
