"""The TLS context of the server. Owns the lowest version and clear errors about files; knows nothing of sockets."""

import ssl
from pathlib import Path

from kilotron.errors import ConfigError


def build_tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A server context from PEM files that speaks TLS 1.2 or later.

    Raises:
        ConfigError: a file is missing or unreadable, is no PEM, or key and certificate do not belong together.
    """
    for name, path in (("--tls-cert", certificate), ("--tls-key", key)):
        if not path.is_file():
            raise ConfigError(f"{name} {path} is not a file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # An empty password instead of OpenSSL's prompt, which would hang a server without a terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(f"TLS certificate {certificate} and key {key} cannot be used: {error}") from error
    return context
