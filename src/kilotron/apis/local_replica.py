"""LocalReplica: an engine around a ready model, in a thread of this process, that works for a coordinator."""

import threading
from pathlib import Path

from kilotron.apis.assembly import assemble
from kilotron.apis.engine_facts import read_engine_facts
from kilotron.config import InferenceConfig
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.engine_worker import EngineWorker
from kilotron.coordinator.pulse_sender import PulseSender, ReplicaState, new_incarnation
from kilotron.models.gpt_model import GPTModel
from kilotron.tokenization import Tokenizer


class LocalReplica:
    """Works until it is closed."""

    def __init__(
        self,
        credentials: Credentials,
        model: GPTModel,
        tokenizer: str | Path | Tokenizer | None,
        config: InferenceConfig,
    ) -> None:
        self.assembly = assemble(model, tokenizer, config)
        state = ReplicaState(new_incarnation(), pid=0)  # nobody may kill this process for what its engine does
        self._worker = EngineWorker(credentials, self.assembly.engine, read_engine_facts(self.assembly), state)
        self._pulse = PulseSender(credentials, state)
        self._thread = threading.Thread(target=self._worker.run, name="kilotron-engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Idempotent."""
        self._worker.stop()
        self._thread.join()
        self._pulse.close()
