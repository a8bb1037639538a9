"""A local broker that lets in only whom it knows: what its listeners ask, and who its users are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ingestor.core.errors import ConfigError
from ingestor.kafka_security import SASL_MECHANISMS, Security

ADMIN = "admin"
"""May do everything; the broker itself comes in as it too."""


@dataclass(frozen=True, slots=True)
class BrokerSecurity:
    """TLS with SASL (all of `SASL_MECHANISMS`) on the listener, and access by rules (ACLs) only.

    The controller's listener, which clients have no use for, stays open to this machine: a
    broker for tests, not for secrets.
    """

    ca_file: Path
    """PEM: who signed the broker's certificate."""
    key_store: Path
    """PEM: the broker's key and its certificate, for 127.0.0.1."""
    password_files: Mapping[str, Path]
    """User → the file with its password; `ADMIN` must be among them."""
    more_listeners: Mapping[str, Listener] = field(default_factory=dict)
    """Name (letters) → another way in."""

    def client(self, user: str = ADMIN, mechanism: str = "PLAIN") -> Security:
        """Return how a user gets in."""
        return Security(ca_file=self.ca_file, mechanism=mechanism, user=user, password_file=self.password_files[user])

    def properties(self, port: int, controller_port: int) -> str:
        """Return the broker's settings; they hold the passwords.

        Raises:
            ConfigError: a password cannot be written into them.
        """
        names = ["SASL_SSL", *self.more_listeners]
        ports = [port, *(listener.port for listener in self.more_listeners.values())]
        lines = [f"{name}://127.0.0.1:{at}" for name, at in zip(names, ports, strict=True)]
        called = [f"{n}://{li.advertised}:{li.port}" for n, li in self.more_listeners.items()]
        protocols = ["SASL_SSL:SASL_SSL", *(f"{n}:{li.protocol}" for n, li in self.more_listeners.items())]
        passwords = {user: _quotable(self.client(user).password()) for user in self.password_files}
        known = " ".join(f'user_{user}="{password}"' for user, password in passwords.items())
        itself = f'username="{ADMIN}" password="{passwords[ADMIN]}"'
        settings = {
            "listeners": ",".join([*lines, f"CONTROLLER://127.0.0.1:{controller_port}"]),
            "advertised.listeners": ",".join([lines[0], *called]),
            "listener.security.protocol.map": ",".join([*protocols, "CONTROLLER:PLAINTEXT"]),
            "inter.broker.listener.name": "SASL_SSL",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "sasl.enabled.mechanisms": ",".join(SASL_MECHANISMS),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self.key_store,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.ca_file,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # The controller's listener knows nobody's name.
            "super.users": f"User:{ADMIN};User:ANONYMOUS",
        }
        for name in names:
            prefix = f"listener.name.{name.lower()}"
            plain = f"org.apache.kafka.common.security.plain.PlainLoginModule required {itself} {known};"
            scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            settings[f"{prefix}.plain.sasl.jaas.config"] = plain
            settings[f"{prefix}.scram-sha-256.sasl.jaas.config"] = scram
            settings[f"{prefix}.scram-sha-512.sasl.jaas.config"] = scram
        for name, listener in self.more_listeners.items():
            prefix = f"listener.name.{name.lower()}.ssl"
            settings[f"{prefix}.keystore.type"] = "PEM"
            settings[f"{prefix}.keystore.location"] = listener.key_store or self.key_store
            settings[f"{prefix}.client.auth"] = "required" if listener.client_certificates else "none"
        return "".join(f"{name}={value}\n" for name, value in settings.items())


@dataclass(frozen=True, slots=True)
class Listener:
    """Another way into the broker."""

    port: int
    protocol: str = "SASL_SSL"
    """``SASL_SSL``, ``SSL`` or ``SASL_PLAINTEXT``."""
    advertised: str = "127.0.0.1"
    """The host as the broker tells it to clients."""
    key_store: Path | None = None
    """None: the broker's own."""
    client_certificates: bool = False
    """Let in only who shows a certificate by the broker's own authority."""


def _quotable(password: str) -> str:
    if set(password) & {'"', "\\", "{", "}"}:
        raise ConfigError('a local broker takes no password with ", \\, { or }')
    return password
