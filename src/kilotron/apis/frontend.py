"""An HTTP front end: the application, its guard and its keys around a client of the coordinator. Imports no torch."""

import asyncio
import gc
import logging
import resource
import signal
from contextlib import suppress
from pathlib import Path

from kilotron.apis.process_configs import FrontendProcessConfig
from kilotron.apis.service import adopt_listening_socket
from kilotron.config import ServeConfig
from kilotron.coordinator.coordinator_connection import NOBODY, CoordinatorConnection
from kilotron.coordinator.supervision.parent_link import ParentLink
from kilotron.errors import ServiceUnavailableError
from kilotron.text_generation_server.app import Application, ResponseCounter, build_app
from kilotron.text_generation_server.authentication import Authentication, KeyRing, is_loopback
from kilotron.text_generation_server.guard import LOOPBACK_HOSTS, Guard
from kilotron.text_generation_server.http_limits import HttpLimits
from kilotron.text_generation_server.http_server import HttpServer, find_loop_factory
from kilotron.text_generation_server.template_worker import TemplateWorker
from kilotron.text_generation_server.tls import build_tls_context
from kilotron.tokenization import load_tokenizer

_log = logging.getLogger(__name__)

# Of the time to drain, for the last words to requests that do not finish, before the supervisor kills.
_LAST_WORDS_S = 2.0
_MOST_FILES = 65536
_BODY_BYTES_PER_TOKEN = 32
_FIRST_NEWS_S = 0.5
_COMPLETION_S = 10.0


def run_frontend(config: FrontendProcessConfig, link: ParentLink) -> None:
    """Serves until SIGTERM; then answers what is under way, refuses what is new, and returns."""
    _allow_many_connections()
    with asyncio.Runner(loop_factory=find_loop_factory()) as runner:
        try:
            runner.run(_serve(config, link))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group  # one of the tasks failed, and the others were ended for it


def _allow_many_connections() -> None:
    """As many open files as this user may have; the usual 1024 would be the limit of connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if most == resource.RLIM_INFINITY else min(most, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


async def _serve(config: FrontendProcessConfig, link: ParentLink) -> None:
    options = ServeConfig(**config.options)
    loop = asyncio.get_running_loop()
    client = CoordinatorConnection(config.credentials, role="controller")
    app = build_app(client, None, options, None)
    app.state.is_complete = False  # until it is known which tokenizer the engines have
    guard = _protect(app, config, options)
    counter = ResponseCounter(guard, client, has_access_log=options.access_log)
    tls = None
    if options.tls_cert_file is not None and options.tls_key_file is not None:
        tls = build_tls_context(Path(options.tls_cert_file), Path(options.tls_key_file))
    listener = adopt_listening_socket(config.listening_fd)
    server = HttpServer(counter, HttpLimits(), listener, tls=tls, drain_timeout_s=1.0)
    terminated, should_stop = asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, terminated.set)
    await client.start()
    async with asyncio.TaskGroup() as group:
        completing = group.create_task(_complete(app, guard, client, link))
        await _wait_for_model(client, completing)
        group.create_task(_drain(app, client, server, terminated, should_stop))
        await server.serve_until(should_stop)
        completing.cancel()
    if isinstance(app.state.renderer, TemplateWorker):
        await app.state.renderer.aclose()
    await client.close()


def _protect(app: Application, config: FrontendProcessConfig, options: ServeConfig) -> Guard:
    """The application inside its layers: keys, and around all the guard."""
    is_local = is_loopback(options.host)
    keys = KeyRing(
        tuple(map(bytes.fromhex, config.api_key_digests)), tuple(map(bytes.fromhex, config.admin_key_digests))
    )
    return Guard(
        Authentication(app, keys, is_local=is_local),
        HttpLimits(),
        allowed_hosts={*LOOPBACK_HOSTS, *map(str.lower, options.allowed_hosts)} if is_local else None,
        allowed_origins=options.allowed_origins,
        is_draining=lambda: app.state.is_draining,
    )


async def _complete(app: Application, guard: Guard, client: CoordinatorConnection, link: ParentLink) -> None:
    """Loads the tokenizer once the engines have told which one, and brings up what renders its chat template."""
    while client.facts is None:
        await client.wait_for_change()
    guard.allow_bodies_of(_BODY_BYTES_PER_TOKEN * client.facts.max_sequence_length)
    folder = client.facts.tokenizer
    if folder is not None:
        tokenizer = await asyncio.to_thread(load_tokenizer, folder)
        app.state.tokenizer = tokenizer
        if tokenizer.chat_template is not None:
            renderer = TemplateWorker(tokenizer.chat_template)
            await renderer.start()
            app.state.renderer = renderer
    app.state.is_complete = True
    gc.collect()
    gc.freeze()  # all that is here stays; looking through it for garbage would hold up every stream for some 50 ms
    link.report_ready()


async def _wait_for_model(client: CoordinatorConnection, completing: asyncio.Task[None]) -> None:
    """Where engines are at work already, none but this front end is starting again, and the others share its socket: it
    takes no connection before it can answer. Where they load, it answers at once that they do."""
    with suppress(TimeoutError):
        await client.wait_until(lambda status: status is not NOBODY, _FIRST_NEWS_S)
    if client.facts is not None:
        await asyncio.wait([completing], timeout=_COMPLETION_S)


async def _drain(
    app: Application,
    client: CoordinatorConnection,
    server: HttpServer,
    terminated: asyncio.Event,
    should_stop: asyncio.Event,
) -> None:
    """After SIGTERM: refuse what is new, at once, and stop when the last answer is out or time is up.

    Requests that are not done by then end in an error, a little before the supervisor would kill this process.
    """
    await terminated.wait()
    app.state.is_draining = True
    drain_timeout_s = app.state.config.drain_timeout_s
    limit_s = drain_timeout_s - min(_LAST_WORDS_S, drain_timeout_s / 2)
    if not await server.drain(limit_s):
        _log.warning("requests that did not finish within %g s are ended", limit_s)
        client.abort_all(ServiceUnavailableError("the server is shutting down"))
    should_stop.set()
