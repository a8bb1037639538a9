"""Why a cluster does not let us in: what a client's time-out does not say.

librdkafka tells a plaintext client nothing about a TLS port, and calls an expired, a foreign and an unknown
certificate by one name. One connection of our own, which shows no password, tells them apart.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator

from ingestor.kafka_security import Security

_TIMEOUT_S = 3.0

_SASL_HANDSHAKE = 17
_NO_SASL_HERE = 34
_LONGEST_ANSWER = 65_536

# OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64


def refusal(servers: str, security: Security) -> str | None:
    """Return in one line why the first of *servers* that has a reason does not let us in, and what to give.

    Args:
        servers: ``host:port``, with commas between them.
        security: how we would get in.

    Returns:
        None where none has a reason that can be seen from here: it does not listen, or a password is wrong.
    """
    for server, host, port in _addresses(servers):
        try:
            reason = _tls_refusal(host, port, security) or _sasl_refusal(host, port, security)
        except OSError:
            continue
        if reason:
            return f"{server} {reason}"
    return None


def _addresses(servers: str) -> Iterator[tuple[str, str, int]]:
    for server in servers.split(","):
        host, _, port = server.strip().rpartition("://")[2].rpartition(":")
        if host and port.isdecimal():
            yield server.strip(), host.strip("[]"), int(port)


def _tls_refusal(host: str, port: int, security: Security) -> str | None:  # noqa: PLR0911 - a list of answers
    """Return what is wrong between our TLS and theirs.

    Raises:
        OSError: it does not listen, or does not answer.
    """
    context = security.ssl_context()
    if context is None:
        if _mechanisms(host, port, None) is None and _speaks_tls(host, port):
            return "speaks TLS: give --kafka-tls, and --kafka-ca-file where the authority is a private one"
        return None
    try:
        if _mechanisms(host, port, context) is not None:
            return None
    except ssl.SSLCertVerificationError as error:
        what = error.verify_message.rstrip(".")
        return f"shows a certificate that is not accepted ({what}): {_advice(error.verify_code)}"
    except (ssl.SSLError, ConnectionError) as error:
        alert = (getattr(error, "reason", None) or "").lower().replace("_", " ")
    else:
        alert = ""
    if "certificate" in alert:
        what = "another client certificate" if security.cert_file else "a client certificate"
        return f"wants {what} ({alert}): give --kafka-cert-file and --kafka-key-file"
    if _mechanisms(host, port, None) is None:
        return f"does not agree on a way to speak TLS ({alert}): look at its ssl.* settings" if alert else None
    return "does not speak TLS: leave out --kafka-tls and the files that turn it on"


def _advice(code: int) -> str:
    if code in (_EXPIRED, _NOT_YET_VALID):
        return "it must be renewed, or this machine's clock is wrong"
    if code in (_OTHER_NAME, _OTHER_ADDRESS):
        return "brokers must be called as their certificates say, by --bootstrap-servers and by advertised.listeners"
    return "give the authority that signed it as --kafka-ca-file"


def _sasl_refusal(host: str, port: int, security: Security) -> str | None:
    """Return what is wrong between our SASL and theirs.

    Raises:
        OSError: it does not answer.
    """
    wanted = _mechanisms(host, port, security.ssl_context(), security.mechanism or "")
    if not wanted:
        return "does not ask for SASL: leave out --kafka-sasl" if wanted == [] and security.mechanism else None
    if security.mechanism in wanted:
        return None
    return f"lets in with {' or '.join(wanted)}: give --kafka-sasl, --kafka-user and --kafka-password-file"


def _mechanisms(host: str, port: int, context: ssl.SSLContext | None, mechanism: str = "") -> list[str] | None:
    """Return the SASL mechanisms that a Kafka broker takes, none where it wants no SASL; None: it is no Kafka.

    Raises:
        OSError: no connection, or no answer (`ssl.SSLError` is one).

    Source: SaslHandshake version 1, kafka.apache.org/protocol.
    """
    body = _string("podstream") + _string(mechanism)
    request = struct.pack(">hhi", _SASL_HANDSHAKE, 1, 1) + body
    with _connection(host, port, context) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        answer = connection.makefile("rb")
        try:
            length, correlation = struct.unpack(">ii", answer.read(8))
            if correlation != 1 or not 10 <= length <= _LONGEST_ANSWER:
                return None
            rest = answer.read(length - 4)
            code, count = struct.unpack_from(">hi", rest)
            return list(_strings(rest, 6, count)) if code != _NO_SASL_HERE else []
        except (struct.error, UnicodeDecodeError):
            return None


def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Only whether it answers in TLS is asked; nothing is sent on this connection.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        _connection(host, port, context).close()
    except (ssl.SSLError, ConnectionError):
        return False
    return True


def _connection(host: str, port: int, context: ssl.SSLContext | None) -> socket.socket:
    plain = socket.create_connection((host, port), timeout=_TIMEOUT_S)
    if context is None:
        return plain
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _strings(data: bytes, at: int, count: int) -> Iterator[str]:
    for _ in range(count):
        (length,) = struct.unpack_from(">h", data, at)
        yield data[at + 2 : at + 2 + length].decode()
        at += 2 + length
