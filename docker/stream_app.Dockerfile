# The workers and the file sink: `stream-app`. Built from the repository's root, as docker-compose.yml does.
# The same as ingestor.Dockerfile up to the lines from HEALTHCHECK on: the images share their layers.

FROM python:3.11.14-slim-bookworm AS build

# Everything comes as a wheel: neither stage has, or needs, a compiler.
COPY requirements-docker.lock /src/
RUN python -m venv --without-pip /opt/podstream \
 && pip --python /opt/podstream/bin/python install --no-cache-dir --require-hashes --only-binary :all: \
        --requirement /src/requirements-docker.lock
COPY pyproject.toml README.md LICENSE /src/
COPY ingestor /src/ingestor
COPY stream_app /src/stream_app
RUN pip --python /opt/podstream/bin/python install --no-cache-dir --no-deps --no-build-isolation /src

# For any processor of the architecture, not for that of the machine that builds.
ENV NUMBA_CACHE_DIR=/var/cache/podstream NUMBA_CPU_NAME=generic
COPY docker/warm_up.py /src/docker/
RUN /opt/podstream/bin/python /src/docker/warm_up.py


FROM python:3.11.14-slim-bookworm

RUN useradd --uid 1000 --no-create-home podstream
COPY --from=build /opt/podstream /opt/podstream
# numba wants to write here: with a read-only root file system, mount a volume, which begins with what is here.
COPY --from=build --chown=podstream:podstream /var/cache/podstream /var/cache/podstream
ENV PATH=/opt/podstream/bin:$PATH NUMBA_CACHE_DIR=/var/cache/podstream NUMBA_CPU_NAME=generic
USER podstream
# Of `worker`. Other commands serve no page: docker run --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:6066/-/healthy', timeout=4)"]
ENTRYPOINT ["stream-app"]
CMD ["--help"]
