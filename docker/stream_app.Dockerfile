# The workers and the file sink: `stream-app`. Built from the repository's root, as docker-compose.yml does.
# The same as ingestor.Dockerfile up to the last two lines: the images share their layers.

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

# Two minutes of one series go through the scanner, the packer and every method, so that numba's machine
# code is in the image. For any processor of the architecture, not for that of the machine that builds.
ENV NUMBA_CACHE_DIR=/var/cache/podstream NUMBA_CPU_NAME=generic
RUN /opt/podstream/bin/python -c '\
from ingestor.catalogue import Catalogue; \
from ingestor.core import wire; \
from ingestor.core.chunk import Marker, RangeChunk; \
from ingestor.core.durations import ChunkSize; \
from ingestor.core.time_range import TimeRange; \
from ingestor.packing import FetchedSeries, pack; \
from ingestor.sources.query_json import read_matrix; \
from stream_app.pipeline import Pipeline, View; \
samples = ",".join(f"[{second},\"{second}.12345678901234567\"]" for second in range(120)); \
answer = "{\"data\":{\"resultType\":\"matrix\",\"result\":[{\"metric\":{\"pod\":\"a\"},\"values\":[" + samples + "]}]}}"; \
block = read_matrix(answer.encode()).block; \
catalogue = Catalogue(1, dict, lambda labels: labels["pod"], {}); \
fetched = FetchedSeries(catalogue.ids(block.label_sets), block.offsets, block.timestamps_ms, block.values); \
whole = TimeRange(0, 120_000); \
[chunk] = pack(whole, "warm-up", [fetched], catalogue, partitions=1).partitions[0]; \
messages = [RangeChunk("warm-up", whole, 0, 0, "warm-up", wire.decode_series(chunk)), \
            Marker("warm-up", whole, 0, 1, "warm-up", ends_job=False)]; \
views = [View(ChunkSize.parse("1m"), method, over_time, ("pod", "service")) \
         for method in ("sum", "mean", "median") for over_time in ("pooled", "last")]; \
[[pipeline.feed(*message) for message in enumerate(messages)] for pipeline in [Pipeline(view, 0, "") for view in views]]'


FROM python:3.11.14-slim-bookworm

RUN useradd --uid 1000 --no-create-home podstream
COPY --from=build /opt/podstream /opt/podstream
# numba wants to write here: with a read-only root file system, mount a volume, which begins with what is here.
COPY --from=build --chown=podstream:podstream /var/cache/podstream /var/cache/podstream
ENV PATH=/opt/podstream/bin:$PATH NUMBA_CACHE_DIR=/var/cache/podstream NUMBA_CPU_NAME=generic
USER podstream
# Faust makes a folder, which stays empty, where it is started.
WORKDIR /tmp
ENTRYPOINT ["stream-app"]
CMD ["--help"]
