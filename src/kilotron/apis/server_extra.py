"""Whether the packages of the extra "server" are there; everything but the HTTP server does without them."""

from importlib.util import find_spec

from kilotron.errors import ConfigError

_PACKAGES = ("starlette", "uvicorn", "prometheus_client")


def require_server_extra() -> None:
    """To be called before anything of the HTTP server is imported.

    Raises:
        ConfigError: packages are missing; names them and the remedy.
    """
    missing = [name for name in _PACKAGES if not _is_there(name)]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}, not installed here: pip install 'kilotron[server]'")


def _is_there(name: str) -> bool:
    """Without importing it, which would hold up the start."""
    try:
        return find_spec(name) is not None
    except ValueError:  # somebody has put it out of reach
        return False
