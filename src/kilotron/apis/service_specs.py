"""The processes of a service: which there are, in which order they end, and what each is told. Starts none of them."""

import os
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import msgspec

from kilotron.apis.process_configs import (
    CoordinatorProcessConfig,
    EngineProcessConfig,
    FrontendProcessConfig,
    LogConfig,
)
from kilotron.config import ADMIN_KEY_VARIABLE, API_KEY_VARIABLE, InferenceConfig, ServeConfig
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.supervision.child_process import ChildSpec

if TYPE_CHECKING:
    from kilotron.text_generation_server.authentication import KeyRing

# Front ends drain first, with engines and coordinator still at work behind them.
_FRONTEND_STAGE, _ENGINE_STAGE, _COORDINATOR_STAGE = 0, 1, 2


def coordinator_spec(credentials: Credentials, serve: ServeConfig, log: LogConfig) -> ChildSpec:
    """The coordinator's process."""
    config = CoordinatorProcessConfig(credentials=credentials, options=changed_options(serve), log=log)
    return _spec("coordinator", "coordinator", config, _COORDINATOR_STAGE)


def engine_specs(
    credentials: Credentials,
    model: str | None,
    tokenizer: str | None,
    engine: InferenceConfig,
    serve: ServeConfig,
    log: LogConfig,
) -> list[ChildSpec]:
    """One process for each replica; several share out the CPUs between them."""
    num_replicas = serve.data_parallel_size
    specs = []
    for index in range(num_replicas):
        config = EngineProcessConfig(
            credentials=credentials,
            model=model,
            tokenizer=tokenizer,
            options=changed_options(engine),
            index=index,
            cpus=None if num_replicas == 1 else _share_of_cpus(index, num_replicas),
            log=log,
        )
        specs.append(_spec(f"engine-{index}", "engine", config, _ENGINE_STAGE))
    return specs


def frontend_specs(
    credentials: Credentials, serve: ServeConfig, keys: "KeyRing", listening_fd: int, log: LogConfig
) -> list[ChildSpec]:
    """One process for each front end; they share the listening socket."""
    config = FrontendProcessConfig(
        credentials=credentials,
        options=changed_options(serve),
        api_key_digests=[digest.hex() for digest in keys.api_digests],
        admin_key_digests=[digest.hex() for digest in keys.admin_digests],
        listening_fd=listening_fd,
        log=log,
    )
    return [
        _spec(f"frontend-{index}", "frontend", config, _FRONTEND_STAGE, inherited_fds=(listening_fd,))
        for index in range(serve.frontend_replicas)
    ]


def changed_options(config: InferenceConfig | ServeConfig) -> dict[str, Any]:
    """The options that are not at their default, as JSON values."""
    defaults = type(config)()
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value != getattr(defaults, name)
    }


def _spec(
    name: str, role: str, config: msgspec.Struct, drain_stage: int, inherited_fds: tuple[int, ...] = ()
) -> ChildSpec:
    return ChildSpec(
        name=name,
        role=role,
        argv=(sys.executable, "-m", "kilotron.apis.service_process", role),
        # Keys are known to the parent; what children need of them is in their configuration.
        environment={API_KEY_VARIABLE: "", ADMIN_KEY_VARIABLE: ""},
        config=msgspec.json.encode(config),
        inherited_fds=inherited_fds,
        drain_stage=drain_stage,
    )


def _share_of_cpus(index: int, num_replicas: int) -> list[int]:
    """Neighbouring CPUs for one replica; with more replicas than CPUs, one each, in turn."""
    cpus = sorted(os.sched_getaffinity(0))
    if num_replicas >= len(cpus):
        return [cpus[index % len(cpus)]]
    return cpus[index * len(cpus) // num_replicas : (index + 1) * len(cpus) // num_replicas]
