"""The service in the foreground: the whole process tree of `kilotron serve`, from the first check to the exit code.

Imports no torch: the parent of engines is a small process.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from kilotron.apis.listening_socket import open_listening_socket, url_of
from kilotron.apis.process_configs import LogConfig
from kilotron.apis.service_specs import coordinator_spec, engine_specs, frontend_specs
from kilotron.checkpoints.source_folder import check_local_folder
from kilotron.config import InferenceConfig, ServeConfig
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.supervision.run_folder import RunFolder
from kilotron.coordinator.supervision.supervisor import SupervisionEnd, Supervisor, SupervisorEvents
from kilotron.errors import CheckpointError, ConfigError
from kilotron.text_generation_server.authentication import KeyRing, check_bind, load_key_ring
from kilotron.text_generation_server.tls import build_tls_context


def run_service(
    model: str | None,
    tokenizer: str | None,
    engine: InferenceConfig,
    serve: ServeConfig,
    make_events: Callable[[str, list[str]], SupervisorEvents],
) -> SupervisionEnd:
    """Serves until a signal, or until a process cannot be kept alive.

    Args:
        model: checkpoint folder, hub id, or None for the bundled model.
        tokenizer: its folder; None takes the checkpoint's.
        engine: options of each replica.
        serve: options of the server.
        make_events: given the server's URL and the names of all processes; gives who is told what happens to them.

    Raises:
        ConfigError: an option is impossible, or the model is no checkpoint's folder; nothing was started.
    """
    keys = read_keys(serve)
    if model is not None:
        try:
            check_local_folder(model)
        except CheckpointError as error:  # found by the engines too, but only after they have imported torch
            raise ConfigError(str(error)) from error
    with open_listening_socket(serve.host, serve.port) as listener, RunFolder.create() as folder:
        credentials = Credentials.create(f"ipc://{folder.socket_path('coordinator')}")
        log = LogConfig(format=serve.log_format)
        specs = [  # engines first: they take longest to start
            *engine_specs(credentials, model, tokenizer, engine, serve, log),
            coordinator_spec(credentials, serve, log),
            *frontend_specs(credentials, serve, keys, listener.fileno(), log),
        ]
        events = make_events(url_of(listener, has_tls=serve.tls_cert_file is not None), [spec.name for spec in specs])
        return Supervisor(specs, events, drain_timeout_s=serve.drain_timeout_s).run()


def read_keys(serve: ServeConfig) -> KeyRing:
    """The keys of a server, when all that has to do with its safety is in order.

    Raises:
        ConfigError: a key, its file or a certificate is no good, or the server would be open to the world.
    """
    files = (None if file is None else Path(file) for file in (serve.api_key_file, serve.admin_key_file))
    keys = load_key_ring(os.environ, *files)
    check_bind(serve.host, keys, allow_public_without_key=serve.allow_public_without_key)
    if serve.tls_cert_file is not None and serve.tls_key_file is not None:
        build_tls_context(Path(serve.tls_cert_file), Path(serve.tls_key_file))
    return keys


def adopt_listening_socket(fd: int) -> socket.socket:
    """In a front end: the socket that the parent opened."""
    return socket.socket(fileno=fd)
