"""Loads the model of an engine replica and puts a worker around it. The one module of a service that imports torch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil

from kilotron.apis.collector_pause import collector_paused

with collector_paused():
    from kilotron.apis.assembly import Assembly, assemble
    from kilotron.apis.engine_facts import read_engine_facts
    from kilotron.kernels.registry import device_of_replica
from kilotron.apis.process_configs import EngineProcessConfig
from kilotron.config import InferenceConfig
from kilotron.coordinator.engine_worker import EngineWorker
from kilotron.coordinator.pulse_sender import ReplicaState


def load_replica(
    config: EngineProcessConfig, state: ReplicaState, on_progress: Callable[[str, float], None]
) -> tuple[EngineWorker, dict[str, Any]]:
    """-> a worker that is ready to run, and what people want to know of how it was loaded.

    Raises:
        KilotronError: the model cannot be loaded, or not with these options.
    """
    options = InferenceConfig(**config.options)
    options = replace(options, device=device_of_replica(options.device, config.index))
    if options.num_threads is None:
        if config.cpus is not None:
            options = replace(options, num_threads=len(config.cpus))
        elif config.model is None:
            # The bundled model's matrices are too small to share; threads that wait for each other cost more.
            options = replace(options, num_threads=1)

    def tell(bytes_done: int, bytes_total: int) -> None:
        on_progress("loading", bytes_done / bytes_total if bytes_total else 1.0)

    assembly = assemble(config.model, config.tokenizer, options, on_progress=tell)
    worker = EngineWorker(config.credentials, assembly.engine, read_engine_facts(assembly), state)
    return worker, describe_replica(assembly)


def describe_replica(assembly: Assembly) -> dict[str, Any]:
    """For the start report, as JSON values."""
    facts = read_engine_facts(assembly)
    return {
        "model": facts.model,
        "decisions": assembly.config.describe(),
        "kernels": assembly.kernels_name,
        "load_phases": [(phase.name, phase.seconds, phase.num_bytes) for phase in assembly.load_phases],
        "memory": [
            ("weights in the checkpoint", assembly.weights_bytes),
            ("KV cache when it is full", assembly.config.kv_cache_bytes),
            ("resident now", psutil.Process().memory_info().rss),
        ],
        "default_sampling": facts.default_sampling,
        "max_sequence_length": facts.max_sequence_length,
        "num_kv_tokens": (facts.num_blocks - 1) * facts.block_size,
        "kv_cache_bytes": assembly.config.kv_cache_bytes,
        "max_requests": facts.max_requests,
    }
