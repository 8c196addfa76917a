"""Renders a conversation into the prompt a model was trained on, with the template that came with the model.

Owns which template is used and what it gets to see. Knows nothing of tokens or of HTTP's message schema.
"""

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from kilotron.errors import ChatTemplateError

if TYPE_CHECKING:
    from jinja2 import Template

    from kilotron.tokenization.template_sandbox import TemplateSandbox

Message = Mapping[str, object]

_MAX_OUTPUT_CHARS = 1 << 24
_TIME_LIMIT_S = 5.0
_CONTINUE_HERE = "CONTINUE_FINAL_MESSAGE_TAG "  # the blank shows whether the template strips what it is given
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_TEMPLATE_FAULTS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NameError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


class ChatTemplate:
    """One model's chat templates: usually one, sometimes several with names such as `default` and `tool_use`.

    Templates come out of downloaded files and run in a sandbox that gives them plain data only, with a limit on time
    and on the length of the result. The limits are looked at in every turn of a loop, in every macro and between the
    pieces of output; a single huge operation inside one expression (a filter that pads to 10**9 characters) is out of
    reach from within the process. A server that takes templates from strangers renders in a worker it can kill.

    Example:
        >>> ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}").render(
        ...     [{"role": "user", "content": "hi"}]
        ... )
        'user: hi'
    """

    def __init__(
        self,
        templates: str | Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
        *,
        max_output_chars: int = _MAX_OUTPUT_CHARS,
        time_limit_s: float = _TIME_LIMIT_S,
    ) -> None:
        """Keeps the sources; nothing is compiled before the first use.

        Args:
            templates: jinja2 source, or several by name.
            special_tokens: Variables such as `bos_token` and their spelling.
            max_output_chars: The longest text a template may write.
            time_limit_s: The longest time it may take.
        """
        self.templates = {"default": templates} if isinstance(templates, str) else dict(templates)
        self.special_tokens = dict(special_tokens or {})
        self._max_output_chars = max_output_chars
        self._time_limit_s = time_limit_s
        self._compiled: dict[str, tuple[Template, TemplateSandbox]] = {}

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        template_name: str | None = None,
        **variables: object,
    ) -> str:
        """Renders a conversation.

        Args:
            messages: The conversation, oldest message first.
            add_generation_prompt: End with the beginning of an assistant message.
            continue_final_message: End inside the last message, so that the model goes on with it.
            tools: JSON schemas of the functions the model may call.
            documents: Texts the model may quote, for templates that know them.
            template_name: Which of several templates; by default `tool_use` if there are tools, else `default`.
            **variables: What else the template knows, such as `enable_thinking`. Wins over the special tokens.

        Raises:
            ChatTemplateError: the template is broken, refuses the messages, or goes beyond a limit; or the arguments
                are wrong.
        """
        if continue_final_message and add_generation_prompt:
            raise ChatTemplateError("continue_final_message and add_generation_prompt exclude each other")
        name = self._choose(template_name, has_tools=tools is not None)
        conversation = _plain_messages(messages)
        final_text = _mark_final_message(conversation) if continue_final_message else ""
        data = _plain_mapping({**self.special_tokens, **variables})
        data |= {
            "messages": conversation,
            "tools": _plain_mappings(tools, "tools"),
            "documents": _plain_mappings(documents, "documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._run(name, data)
        return _cut_at_mark(text, final_text) if continue_final_message else text

    def _choose(self, name: str | None, *, has_tools: bool) -> str:
        if name is None:
            name = "tool_use" if has_tools and "tool_use" in self.templates else "default"
        if not isinstance(name, str) or name not in self.templates:  # it may come from a request as it is
            raise ChatTemplateError(f"no chat template named {name!r}; this model has {sorted(self.templates)}")
        return name

    def _run(self, name: str, data: Mapping[str, object]) -> str:
        from jinja2.exceptions import TemplateError, UndefinedError

        try:
            template, sandbox = self._compile(name)
            sandbox.set_deadline(monotonic() + self._time_limit_s)
            pieces: list[str] = []
            num_chars = 0
            for piece in template.generate(data):
                num_chars += len(piece)
                if num_chars > self._max_output_chars:
                    raise ChatTemplateError(f"the chat template writes more than {self._max_output_chars} characters")
                pieces.append(piece)
                sandbox.check_deadline()
        except UndefinedError as error:
            raise ChatTemplateError(f"the chat template needs something that it was not given: {error}") from error
        except TemplateError as error:
            raise ChatTemplateError(str(error) or type(error).__name__) from error
        except _TEMPLATE_FAULTS as error:  # whatever its code can raise, it is the template that failed, not we
            if isinstance(error, ChatTemplateError):
                raise
            raise ChatTemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error
        return "".join(pieces)

    def _compile(self, name: str) -> "tuple[Template, TemplateSandbox]":
        from kilotron.tokenization.template_sandbox import TemplateSandbox

        compiled = self._compiled.get(name)
        if compiled is None:
            # Threads may come here together: no harm, since each template goes with the sandbox it was made in.
            sandbox = TemplateSandbox(self._max_output_chars)
            compiled = self._compiled[name] = (sandbox.from_string(self.templates[name]), sandbox)
        return compiled


def _plain_messages(messages: Sequence[Message]) -> list[dict[str, object]]:
    """A copy the template may have, in the shape templates expect: no empty fields, reasoning under its usual names."""
    if not messages:
        raise ChatTemplateError("a conversation needs at least one message")
    plain = _plain_mappings(messages, "messages") or []
    conversation = []
    for message in plain:
        message = {key: value for key, value in message.items() if value is not None}
        reasoning = next((message[field] for field in _REASONING_FIELDS if field in message), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        conversation.append(message)
    return conversation


def _plain_mappings(values: Sequence[Message] | None, name: str) -> list[dict[str, object]] | None:
    if values is None:
        return None
    if isinstance(values, (str, Mapping)) or not all(isinstance(value, Mapping) for value in values):
        raise ChatTemplateError(f"{name} must be a list of JSON objects")
    return [_plain_mapping(value) for value in values]


def _plain_mapping(value: Message) -> dict[str, object]:
    try:
        return {str(key): _plain(item) for key, item in value.items()}
    except RecursionError as error:
        raise ChatTemplateError("what is given to the chat template is nested too deeply") from error


def _plain(value: object) -> object:
    """Rebuilt from JSON types: methods of richer objects (images, arrays) are a way out of the sandbox."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # str(value) would ask an enumeration for its name
    if isinstance(value, (int, float)):
        return int.__int__(value) if isinstance(value, int) else float.__float__(value)
    if isinstance(value, Mapping):
        return _plain_mapping(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _mark_final_message(conversation: list[dict[str, object]]) -> str:
    """Puts a mark at the end of the last message's text and returns that text."""
    message = conversation[-1]
    content = message.get("content")
    holder, field = message, "content"
    if isinstance(content, list):
        texts = [part for part in content if isinstance(part, dict) and "text" in part]
        if texts:
            holder, field = texts[-1], "text"
    text = holder.get(field)
    if not isinstance(text, str):
        raise ChatTemplateError("continue_final_message needs a text in the last message")
    holder[field] = text + _CONTINUE_HERE
    return text


def _cut_at_mark(text: str, final_text: str) -> str:
    position = text.rfind(_CONTINUE_HERE.strip())
    if position < 0 or final_text.strip() not in text:
        raise ChatTemplateError("this chat template does not write the last message as it is, so it cannot go on")
    head = text[:position]
    return head if text.startswith(_CONTINUE_HERE, position) else head.rstrip()
