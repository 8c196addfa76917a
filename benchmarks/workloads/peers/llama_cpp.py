"""llama.cpp's own server, asked over loopback HTTP with streaming.

Runs in this command's interpreter. One thread per request, as one connection each. Standard library only.
"""

import http.client
import json
import socket
import subprocess
import threading
import time
from typing import Any

from workloads.peers.protocol import Stopwatch, serve

CONTEXT_TOKENS, SINGLE_CONTEXT_TOKENS = 20_480, 1024
START_TIMEOUT_S = 120.0
REQUEST_TIMEOUT_S = 1800.0


class LlamaServer:
    """Options: "server", its path, and "arguments", further ones for it, separated by blanks."""

    def __init__(self, model: str, num_threads: int, options: dict[str, str]) -> None:
        self._port = _free_port()
        is_single = options.get("num_requests") == "1"
        flags = {
            "--model": model,
            "--threads": num_threads,
            "--threads-batch": num_threads,
            "--parallel": 1 if is_single else 32,
            "--ctx-size": SINGLE_CONTEXT_TOKENS if is_single else CONTEXT_TOKENS,
            "--batch-size": 2048,
            "--ubatch-size": 512,
            "--flash-attn": "on",
            "--host": "127.0.0.1",
            "--port": self._port,
        }
        words = [str(word) for pair in flags.items() for word in pair]
        words += ["--kv-unified", "--no-webui", *options.get("arguments", "").split()]
        self._options = options
        self._process = subprocess.Popen([options["server"], *words], stdin=subprocess.DEVNULL)
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def run(self, requests: list[dict[str, Any]]) -> tuple[list[float | None], list[float | None]]:
        watch = Stopwatch(requests)
        threads = [
            threading.Thread(target=self._stream, args=(watch, index, request))
            for index, request in enumerate(requests)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return watch.timings()

    def _stream(self, watch: Stopwatch, index: int, request: dict[str, Any]) -> None:
        body = {
            "prompt": request["prompt"],
            "n_predict": request["num_tokens"],
            "ignore_eos": True,
            "temperature": 0,
            "samplers": [],
            "stream": True,
            "cache_prompt": True,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST_TIMEOUT_S)
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        seen = 0
        for line in connection.getresponse():
            if line.startswith(b"data:"):
                event = json.loads(line[5:])
                # The last event brings no token of its own, but the number of all.
                num_tokens = (
                    event["tokens_predicted"] if event.get("stop") else seen + len(event.get("tokens", ())) or 1
                )
                watch.mark(index, num_tokens - seen)
                seen = num_tokens
        connection.close()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with code {self._process.returncode}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.02)
        raise RuntimeError(f"the server did not become ready within {START_TIMEOUT_S:g} seconds")

    def facts(self) -> dict[str, Any]:
        done = subprocess.run([self._options["server"], "--version"], capture_output=True, text=True, check=False)
        lines = (done.stderr + done.stdout).splitlines()
        return {"version": next((line for line in lines if line.startswith("version")), "unknown")}

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    serve(LlamaServer)
