"""How to get into a Kafka cluster: TLS, SASL, and the files that hold certificates and secrets.

Paths travel, contents do not: no secret is in a repr, a log line or a command line.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingestor.core.errors import ConfigError

SASL_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True, slots=True)
class Security:
    """What a client shows to a cluster, and what it asks of it; the default is a plaintext cluster.

    A file of TLS turns TLS on. The certificate and the host name of a broker are always verified.
    """

    tls: bool = False
    ca_file: Path | None = None
    """PEM, the authorities that sign the brokers' certificates; None: the system's."""
    cert_file: Path | None = None
    """PEM, this client's certificate and those between it and the authority."""
    key_file: Path | None = None
    key_password_file: Path | None = None
    mechanism: str | None = None
    """One of `SASL_MECHANISMS`; None: no SASL."""
    user: str | None = None
    password_file: Path | None = None

    @property
    def encrypted(self) -> bool:
        """Whether the connection is TLS."""
        return self.tls or any((self.ca_file, self.cert_file, self.key_file))

    @property
    def protocol(self) -> str:
        """Kafka's name of the combination."""
        return ("SASL_" if self.mechanism else "") + ("SSL" if self.encrypted else "PLAINTEXT")

    def check(self) -> None:
        """Refuse what cannot work, before anything is tried.

        Raises:
            ConfigError: names every fault, with the flags of the command lines.
        """
        faults = [*self._incomplete(), *self._unusable()]
        if faults:
            raise ConfigError("; ".join(faults))

    def password(self) -> str:
        """Read the password.

        Raises:
            ConfigError: the file cannot be read any more.
        """
        return _secret("--kafka-password-file", self.password_file)

    def librdkafka_settings(self) -> dict[str, Any]:
        """Return the settings of a confluent-kafka client.

        Raises:
            ConfigError: a secret's file cannot be read any more.

        librdkafka verifies certificates and host names unless it is told not to.
        """
        if self.protocol == "PLAINTEXT":
            return {}
        settings: dict[str, Any] = {"security.protocol": self.protocol}
        if self.mechanism:
            settings |= {
                "sasl.mechanism": self.mechanism,
                "sasl.username": self.user,
                "sasl.password": self.password(),
            }
        if self.encrypted:
            files = {
                "ssl.ca.location": self.ca_file or _system_authorities(),
                "ssl.certificate.location": self.cert_file,
                "ssl.key.location": self.key_file,
            }
            settings |= {name: str(path) for name, path in files.items() if path}
            if self.key_password_file:
                settings["ssl.key.password"] = self._key_password()
        return settings

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return the context for clients that use Python's TLS, or None without TLS.

        Raises:
            ConfigError: a file does not hold what it should.
        """
        if not self.encrypted:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"--kafka-ca-file {self.ca_file} holds no PEM certificate ({_words(error)})") from error
        # Python 3.13 asks more of an authority's certificate than librdkafka and Java do, which many private
        # ones do not give; the two clients of a worker must come to the same verdict.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.cert_file and self.key_file:
            try:
                # Given as a function: without one, OpenSSL would ask a terminal.
                context.load_cert_chain(self.cert_file, self.key_file, self._key_password)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"--kafka-cert-file {self.cert_file} and --kafka-key-file {self.key_file} cannot be used together "
                    f"({_words(error)}): PEM, the key of this certificate, --kafka-key-password-file if it is encrypted"
                ) from error
        return context

    def _key_password(self) -> str:
        return _secret("--kafka-key-password-file", self.key_password_file) if self.key_password_file else ""

    def _incomplete(self) -> list[str]:
        """Return what is missing beside what is given."""
        asked = [
            (self.mechanism and not self.user, f"--kafka-sasl {self.mechanism} needs --kafka-user"),
            (self.mechanism and not self.password_file, f"--kafka-sasl {self.mechanism} needs --kafka-password-file"),
            (self.user and not self.mechanism, "--kafka-user needs --kafka-sasl"),
            (self.password_file and not self.mechanism, "--kafka-password-file needs --kafka-sasl"),
            (self.cert_file and not self.key_file, "--kafka-cert-file needs --kafka-key-file"),
            (self.key_file and not self.cert_file, "--kafka-key-file needs --kafka-cert-file"),
            (self.key_password_file and not self.key_file, "--kafka-key-password-file needs --kafka-key-file"),
        ]
        return [fault for wrong, fault in asked if wrong]

    def _unusable(self) -> list[str]:
        """Return what is wrong with the files; with what they hold only where all can be read."""
        files = {
            "--kafka-ca-file": self.ca_file,
            "--kafka-cert-file": self.cert_file,
            "--kafka-key-file": self.key_file,
            "--kafka-key-password-file": self.key_password_file,
            "--kafka-password-file": self.password_file,
        }
        faults = [fault for flag, path in files.items() if path and (fault := _unreadable(flag, path))]
        if faults:
            return faults
        for use in (self.ssl_context, *([self.password] if self.password_file else [])):
            try:
                use()
            except ConfigError as error:
                faults.append(str(error))
        return faults


def _unreadable(flag: str, path: Path) -> str | None:
    try:
        # Every client of ours reads it anew, which a pipe gives only once.
        if path.exists() and not path.is_file():
            return f"{flag} {path} is no file"
        with path.open("rb"):
            return None
    except OSError as error:
        return f"{flag} {path} cannot be read ({error.strerror})"


def _secret(flag: str, path: Path | None) -> str:
    """Return a file's content without the line's end that editors add.

    Raises:
        ConfigError: it is empty, no text, or cannot be read.
    """
    try:
        secret = path.read_text(encoding="utf-8").rstrip("\r\n") if path else ""
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        # Not kept as the cause: it would carry the secret.
        raise ConfigError(f"{flag} {path} is not UTF-8") from None
    if not secret or "\n" in secret or "\0" in secret:
        raise ConfigError(f"{flag} {path} must hold one line, the password")
    return secret


def _system_authorities() -> str | None:
    """Return the file or folder that Python trusts (SSL_CERT_FILE and SSL_CERT_DIR count), for others to trust too."""
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath


def _words(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or error)
