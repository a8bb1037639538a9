"""``stream-app dataset`` hands on how its files are to look."""

from __future__ import annotations

from pathlib import Path

import oracle
import pandas as pd
from commands import WHEN, run, stream_app

from ingestor.local.kafka import LocalKafka
from ingestor.local.prometheus import LocalPrometheus
from ingestor.workloads import service_of


def test_a_dataset_looks_as_asked(
    prometheus: LocalPrometheus, kafka: LocalKafka, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """Columns of zeros are gone, what is absent is -1, times are numbers; and other looks are another dataset."""
    dataset = [
        "dataset", "--url", prometheus.url, *WHEN, "--preset", "none", "--chunk-size", "7m", "--method", "min",
        "--bootstrap-servers", kafka.bootstrap_servers, "--storage", str(tmp_path / "data"),
    ]  # fmt: skip
    zero = ["--expression", 'zero=0 * count by (namespace, pod) ({pod!=""})', "--step", "7m"]
    looks = ["--missing", "-1", "--time-format", "epoch-ms", *zero]
    run(stream_app(*dataset, *looks, "--drop-zero-columns"))
    expected: dict[str, dict[tuple[int, str], dict[str, float]]] = {}
    for (namespace, pod, start_ms), metrics in oracle.windows(samples, "7m", "min", "pod").items():
        expected.setdefault(f"{namespace or '_'}/{service_of(pod)}.csv", {})[start_ms, pod] = metrics
    found = {str(path.relative_to(tmp_path / "data")): path for path in (tmp_path / "data").glob("*/*.csv")}
    assert found.keys() == expected.keys()
    for name, path in found.items():
        frame = pd.read_csv(path).set_index(["timestamp", "pod"]).sort_index()
        rows = pd.DataFrame.from_dict(expected[name], orient="index").sort_index()
        is_zero = ((rows == 0) | rows.isna()).all()
        assert "zero" not in frame
        assert set(frame) == set(rows.columns[~is_zero])
        # An expression sees samples of up to five minutes before: it can have a row alone.
        assert (frame.drop(rows.index) == -1).all(axis=None)
        frame = frame.loc[rows.index]
        pd.testing.assert_frame_equal(frame, rows[frame.columns].fillna(-1.0), check_names=False, check_exact=True)
    for others in ([], [*looks, "--drop-zero-columns"]):
        refused = run(stream_app(*dataset, *others), code=2)
        assert "holds a finished dataset: give --overwrite, or another --storage" in refused.stderr
    path = tmp_path / "data/_/lonely.csv"
    run(stream_app(*dataset, "--match", '{namespace="shop"}', "--overwrite"))
    assert not path.parent.exists()
    (text,) = {path.read_text().splitlines()[1].partition(",")[0] for path in (tmp_path / "data").glob("shop/*.csv")}
    assert text.endswith("Z")
