"""The exception tree. Every error a user can cause names the value that was wrong and what to do about it.

KilotronError
|-- ConfigError                 (ValueError)         an engine option is unknown, out of range or impossible here
|-- InvalidRequestError         (ValueError)         one request is wrong; nothing was started, nobody else notices
|   |-- SamplingParamsError                          a sampling field is unknown or out of range
|   |-- EmptyPromptError                             a prompt without a single token
|   |-- TokenOutOfRangeError                         a token id outside the model's vocabulary
|   |-- PromptTooLongError                           prompt (plus requested tokens) exceeds the context length
|   `-- RequestNeverFitsError                        the KV cache could not hold the request even when empty
|-- CheckpointError             (ValueError)         a checkpoint cannot be used
|   |-- CheckpointNotFoundError (FileNotFoundError)  no such folder, hub id or file
|   |-- BrokenCheckpointError                        a file or tensor is missing, truncated, mis-shaped or mis-typed
|   `-- UnknownArchitectureError                     the architecture is not one kilotron implements
|-- TokenizerError              (ValueError)         tokenizer files are missing, broken or unsupported
|-- ChatTemplateError           (ValueError)         a chat template failed or refused the messages
|-- KernelError                 (RuntimeError)       a kernel backend is unknown or cannot run on this machine
|-- TryAgainLaterError          (RuntimeError)       refused for now; may say after how many seconds to come back
|   |-- QueueFullError                               the waiting queue is at its limit
|   |   `-- NoPlaceInQueueError                      whoever else comes is refused too
|   |-- QuotaExceededError                           one API key has too many requests under way
|   `-- ServiceUnavailableError                      no engine can take the request now: loading, draining, dead
|-- RequestNotFoundError        (KeyError)           no request with this id is known (any more)
|-- DuplicateRequestError       (RuntimeError)       a request with the same id or idempotency key is under way
|-- RequestAbortedError         (RuntimeError)       the request was aborted before it finished
|   `-- DeadlineExceededError                        its deadline passed
|-- NumericalError              (RuntimeError)       the model gave NaN or Inf for this request
|-- StepFailedError             (RuntimeError)       a step that the request took part in failed; others go on
|-- LifecycleError              (RuntimeError)       pause, unpause, suspend or resume in the wrong state
|   `-- EngineSuspendedError                         a step was asked of an engine whose KV cache is suspended
|-- SuspendFailedError          (RuntimeError)       no memory or no room to suspend or resume; nothing was changed
|-- ProtocolError               (RuntimeError)       a peer was refused, or sent what the wire protocol does not know
`-- EngineClosedError           (RuntimeError)       the engine was shut down, or died; says why
    `-- EngineDiedError                              the process that ran the request died; says if a retry makes sense
"""


class KilotronError(Exception):
    """Base of everything kilotron raises on purpose."""


class ConfigError(KilotronError, ValueError):
    """An engine option is unknown, out of range, or impossible on this machine."""


class InvalidRequestError(KilotronError, ValueError):
    """A single request is wrong. It was not accepted; all others go on."""


class SamplingParamsError(InvalidRequestError):
    """A sampling field is unknown, has the wrong type, or lies outside its range."""


class EmptyPromptError(InvalidRequestError):
    """The prompt has no token, so there is nothing to continue."""


class TokenOutOfRangeError(InvalidRequestError):
    """A token id is not in the model's vocabulary."""


class PromptTooLongError(InvalidRequestError):
    """The prompt, or prompt plus requested tokens, exceeds the context length."""


class RequestNeverFitsError(InvalidRequestError):
    """The request needs more KV-cache blocks than exist."""


class CheckpointError(KilotronError, ValueError):
    """A checkpoint cannot be used."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at the given place."""

    def __str__(self) -> str:
        # OSError formats itself from errno and filename; the message is all there is to say.
        return str(self.args[0]) if self.args else ""


class BrokenCheckpointError(CheckpointError):
    """A file or tensor of a checkpoint is missing, truncated, mis-shaped or mis-typed."""


class UnknownArchitectureError(CheckpointError):
    """The checkpoint's architecture is not implemented."""


class TokenizerError(KilotronError, ValueError):
    """Tokenizer files are missing, broken or unsupported."""


class ChatTemplateError(KilotronError, ValueError):
    """A chat template failed, or refused the messages it was given."""


class KernelError(KilotronError, RuntimeError):
    """A kernel backend is unknown or cannot run here."""


class TryAgainLaterError(KilotronError, RuntimeError):
    """Base of the refusals that time mends; nothing was started."""

    def __init__(self, message: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """Seconds after which another try makes sense; None where nobody knows."""


class QueueFullError(TryAgainLaterError):
    """The waiting queue is at its limit."""


class NoPlaceInQueueError(QueueFullError):
    """As many requests wait as may wait, so that the next one, whatever it asks for, is refused as well."""


class QuotaExceededError(TryAgainLaterError):
    """One API key has too many requests under way."""


class ServiceUnavailableError(TryAgainLaterError):
    """No engine can take the request now: they load, drain, are suspended or dead."""


class RequestNotFoundError(KilotronError, KeyError):
    """No request with this id is known (any more)."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument; a sentence must not come out quoted.
        return str(self.args[0]) if self.args else ""


class DuplicateRequestError(KilotronError, RuntimeError):
    """A request with the same id or idempotency key is under way."""


class RequestAbortedError(KilotronError, RuntimeError):
    """The request was aborted before it finished."""


class DeadlineExceededError(RequestAbortedError):
    """The request's deadline passed before it finished."""


class NumericalError(KilotronError, RuntimeError):
    """The model gave NaN or Inf for this request."""


class StepFailedError(KilotronError, RuntimeError):
    """A step that the request took part in raised an exception, which is this one's cause."""


class LifecycleError(KilotronError, RuntimeError):
    """Pause, unpause, suspend or resume was asked for in a state that does not allow it."""


class EngineSuspendedError(LifecycleError):
    """The engine's KV cache is suspended; resume it first."""


class SuspendFailedError(KilotronError, RuntimeError):
    """The KV cache could not be suspended or resumed; the engine is in the state it was in before."""


class ProtocolError(KilotronError, RuntimeError):
    """A peer was refused, or sent something that the wire protocol does not know."""


class EngineClosedError(KilotronError, RuntimeError):
    """The engine was shut down or died; the message says which and why."""


class EngineDiedError(EngineClosedError):
    """The engine that ran the request died before it finished."""

    def __init__(self, message: str = "", *, is_retryable: bool = True) -> None:
        super().__init__(message)
        self.is_retryable = is_retryable
        """False when the request itself is suspected of killing engines."""
