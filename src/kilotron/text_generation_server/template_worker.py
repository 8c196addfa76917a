"""Renders chat templates in a process of its own, which is killed when a template takes too long or too much.

Owns the queue in front of that process, its restarts and its limits. Knows nothing of HTTP or tokens.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kilotron.errors import ChatTemplateError, QueueFullError
from kilotron.text_generation_server.template_worker_process import LENGTH, MAX_ERROR_CHARS, READY, REFUSED, RENDERED
from kilotron.tokenization.chat_template import ChatTemplate, Message

logger = logging.getLogger(__name__)

_CHILD_MODULE = "kilotron.text_generation_server.template_worker_process"
_INHERITED_VARIABLES = ("LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")  # and no secrets
_BYTES_PER_CHAR = 4
_WARM_UP = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True, kw_only=True)
class TemplateLimits:
    """What one rendering may take."""

    time_limit_s: float = 1.0
    start_limit_s: float = 10.0  # for the process to come up, on a machine that is busy loading a model
    memory_bytes: int = 256 << 20  # above what the process has when it starts
    max_request_bytes: int = 16 << 20
    max_output_chars: int = 1 << 23
    max_waiting: int = 256


class TemplateWorker:
    """Renders conversations with a model's chat templates, one after the other.

    A caller that is cancelled gives up its place in the queue; a rendering under way is finished for nobody.

    Example:
        >>> async def example(template: ChatTemplate) -> str:
        ...     worker = TemplateWorker(template)
        ...     await worker.start()
        ...     try:
        ...         return await worker.render([{"role": "user", "content": "hi"}], add_generation_prompt=True)
        ...     finally:
        ...         await worker.aclose()
    """

    def __init__(self, template: ChatTemplate, limits: TemplateLimits | None = None) -> None:
        """Starts nothing yet."""
        self._limits = limits or TemplateLimits()
        self._start_frame = _encode(
            {
                "templates": template.templates,
                "special_tokens": template.special_tokens,
                "max_output_chars": self._limits.max_output_chars,
                "time_limit_s": self._limits.time_limit_s,
                "memory_bytes": self._limits.memory_bytes,
            }
        )
        self._waiting: asyncio.Queue[tuple[bytes, asyncio.Future[str]]] = asyncio.Queue(self._limits.max_waiting)
        self._serving: asyncio.Task[None] | None = None
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """The process that renders now, for tests and status pages."""
        return self._child.pid if self._child is not None else None

    async def start(self) -> None:
        """Brings the process up and has it compile the usual template, so that the first request need not wait.

        Call it in the thread whose loop will serve: the process dies with that thread.
        """
        self._serving = asyncio.create_task(self._serve())
        with contextlib.suppress(ChatTemplateError):  # templates may refuse this conversation, or fail: no matter yet
            await self.render(_WARM_UP)

    async def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        template_name: str | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Renders a conversation as `ChatTemplate.render` does.

        Raises:
            ChatTemplateError: the template failed, refused the messages or went beyond a limit, or the messages are
                too large or not JSON.
            QueueFullError: too many renderings are waiting.
        """
        if self._serving is None:
            raise ChatTemplateError("the chat template worker is not running")
        arguments = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "tools": tools,
            "documents": documents,
            "template_name": template_name,
        }
        if taken := sorted((variables or {}).keys() & {*arguments, "self"}):
            raise ChatTemplateError(f"these names are no variables of a chat template: {', '.join(taken)}")
        frame = _encode({**arguments, "variables": dict(variables or {})})
        if len(frame) > self._limits.max_request_bytes:
            raise ChatTemplateError(
                f"the conversation has {len(frame)} bytes, and a chat template is given at most "
                f"{self._limits.max_request_bytes}"
            )
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((frame, answer))
        except asyncio.QueueFull:
            raise QueueFullError(
                f"{self._limits.max_waiting} conversations wait for their chat template; try again later"
            ) from None
        return await answer

    async def aclose(self) -> None:
        """Kills the process and fails whoever still waits."""
        if self._serving is not None:
            serving, self._serving = self._serving, None
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
        while not self._waiting.empty():
            _, answer = self._waiting.get_nowait()
            _fail(answer, "the chat template worker was stopped")
        await self._drop_child()

    async def _serve(self) -> None:
        """The only user of the process, so that no caller's end leaves half a conversation on the socket."""
        while True:
            frame, answer = await self._waiting.get()
            if answer.done():  # its caller has left
                continue
            try:
                text = await self._render_once_more_if_it_dies(frame)
            except asyncio.CancelledError:
                _fail(answer, "the chat template worker was stopped")
                raise
            except ChatTemplateError as error:
                _fail(answer, str(error))
            except Exception:
                logger.exception("the chat template worker failed")
                _fail(answer, "the chat template worker failed")
                await self._drop_child()
            else:
                if not answer.done():
                    answer.set_result(text)

    async def _render_once_more_if_it_dies(self, frame: bytes) -> str:
        with contextlib.suppress(_ChildDiedError):  # it may have died long ago, and not of this conversation
            return await self._render(frame)
        try:
            return await self._render(frame)
        except _ChildDiedError:
            raise ChatTemplateError("the process that renders chat templates died of this conversation") from None

    async def _render(self, frame: bytes) -> str:
        child = await self._running_child()
        try:
            async with asyncio.timeout(self._limits.time_limit_s):
                await child.send(frame)
                reply = await child.receive(MAX_ERROR_CHARS + self._limits.max_output_chars * _BYTES_PER_CHAR)
        except TimeoutError:
            await self._drop_child()
            limit_s = self._limits.time_limit_s
            raise ChatTemplateError(f"the chat template takes longer than {limit_s:g} s, and was stopped") from None
        except OSError as error:
            await self._drop_child()
            raise _ChildDiedError from error
        kind, text = reply[:1], reply[1:]
        if kind == REFUSED:
            raise ChatTemplateError(text.decode("utf-8", "replace"))
        if kind != RENDERED:
            await self._drop_child()
            raise ChatTemplateError("the process that renders chat templates gave an answer of no known kind")
        return text.decode("utf-8", "surrogatepass")

    async def _running_child(self) -> "_Child":
        if self._child is None:
            child = self._child = _Child()
            try:
                async with asyncio.timeout(self._limits.start_limit_s):
                    await child.send(self._start_frame)
                    if await child.receive(len(READY)) != READY:
                        raise ConnectionError("it says something else than that it is ready")
            except OSError as error:  # TimeoutError is one
                await self._drop_child()
                logger.error("the process that renders chat templates does not start: %s", type(error).__name__)
                raise ChatTemplateError("the process that renders chat templates does not start") from error
        return self._child

    async def _drop_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.kill()


class _ChildDiedError(Exception):
    """The process ended before it had answered."""


class _Child:
    """A process and the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._socket = ours
        environment = {name: os.environ[name] for name in _INHERITED_VARIABLES if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
        with theirs:
            # Not in another thread, although it takes a millisecond or two: the process would die with that thread.
            self._process = subprocess.Popen(
                # -P: no modules out of the current folder. -B: nothing may be written.
                [sys.executable, "-P", "-B", "-m", _CHILD_MODULE, str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment,
                cwd="/",
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    async def send(self, frame: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, LENGTH.pack(len(frame)) + frame)

    async def receive(self, max_bytes: int) -> bytes:
        num_bytes = LENGTH.unpack(await self._receive_exactly(LENGTH.size))[0]
        if num_bytes > max_bytes:
            raise ConnectionError("a frame is too long")
        return await self._receive_exactly(num_bytes)

    async def kill(self) -> None:
        self._socket.close()
        self._process.kill()
        # The kernel takes a while to give much memory back.
        await asyncio.to_thread(self._process.wait)

    async def _receive_exactly(self, num_bytes: int) -> bytes:
        loop = asyncio.get_running_loop()
        pieces = []
        while num_bytes:
            piece = await loop.sock_recv(self._socket, min(num_bytes, 1 << 18))
            if not piece:
                raise ConnectionError("the process has ended")
            pieces.append(piece)
            num_bytes -= len(piece)
        return b"".join(pieces)


def _encode(content: Mapping[str, object]) -> bytes:
    try:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError) as error:
        raise ChatTemplateError(f"a chat template is given JSON values only: {error}") from error


def _fail(answer: "asyncio.Future[str]", message: str) -> None:
    if not answer.done():
        answer.set_exception(ChatTemplateError(message))
