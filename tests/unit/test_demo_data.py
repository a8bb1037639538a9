"""The demo's cluster behaves like one, and its past and present are one story."""

from __future__ import annotations

import io
import itertools
import re
from collections import defaultdict
from pathlib import Path

import programs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

_MODULES = programs.modules("demo")
metrics, history, workload = _MODULES["metrics"], _MODULES["history"], _MODULES["workload"]
tables, demo, dashboard = _MODULES["tables"], _MODULES["run"], _MODULES["dashboard"]

NOW_MS = 1_795_460_000_000
PAST_MS = 6 * metrics.HOUR_MS

moments = st.integers(1_700_000_000_000, 1_900_000_000_000)
starts = moments
steps = st.integers(1, 6 * metrics.HOUR_MS)


def scrape(time_ms: int) -> dict[tuple[str, metrics.Labels], float]:
    return {(name, labels): value for name, labels, value in metrics.samples_at(time_ms)}


def started_ms(time_ms: int) -> dict[str, int]:
    return {pod.name: pod.started_ms for pod in metrics.pods_at(time_ms)}


def pod_of(labels: metrics.Labels) -> str:
    return dict(labels)["pod"]


def counters(time_ms: int) -> dict[tuple[str, metrics.Labels], float]:
    return {key: value for key, value in scrape(time_ms).items() if metrics.TYPES[key[0]] == "counter"}


@pytest.fixture(scope="module")
def past() -> dict[int, dict[tuple[str, metrics.Labels], float]]:
    """Six hours, one scrape in 15 s."""
    return {time_ms: scrape(time_ms) for time_ms in range(NOW_MS - PAST_MS, NOW_MS + 1, history.INTERVAL_MS)}


@pytest.fixture(scope="module")
def openmetrics() -> str:
    """The same six hours as text."""
    file = io.StringIO()
    history.write_history(file, NOW_MS - PAST_MS, NOW_MS)
    return file.getvalue()


@given(moments, steps)
def test_counters_never_fall_within_a_process(time_ms: int, step_ms: int) -> None:
    """Between two scrapes a counter falls only where its process started anew in between."""
    before, after = counters(time_ms), counters(time_ms + step_ms)
    was, now = started_ms(time_ms), started_ms(time_ms + step_ms)
    for key in before.keys() & after.keys():
        pod = pod_of(key[1])
        if was[pod] == now[pod]:
            assert after[key] >= before[key], key


@given(moments)
def test_counters_grow_smoothly(time_ms: int) -> None:
    """In one second no counter moves by more than a busy second's work."""
    before, after = counters(time_ms), counters(time_ms + 1000)
    was, now = started_ms(time_ms), started_ms(time_ms + 1000)
    for key in before.keys() & after.keys():
        if was[pod_of(key[1])] == now[pod_of(key[1])]:
            assert after[key] - before[key] <= 1000


@given(moments)
def test_the_cluster_has_about_ten_pods_of_four_services(time_ms: int) -> None:
    """Three pods of each of three services always run; a report at times; no series stands twice."""
    samples = list(metrics.samples_at(time_ms))
    assert len(scrape(time_ms)) == len(samples)
    services = defaultdict(set)
    for pod in metrics.pods_at(time_ms):
        services[pod.namespace, pod.service].add(pod.name)
    sizes = {key: len(names) for key, names in services.items()}
    assert sizes.pop(("backend", "stock-report"), 1) == 1
    assert sizes == {("shop", "checkout"): 3, ("shop", "cart"): 3, ("backend", "orders-db"): 3}


@given(moments)
def test_values_are_plausible(time_ms: int) -> None:
    """Nothing is negative or infinite; memory comes in pages; the preset keeps every container."""
    for name, labels, value in metrics.samples_at(time_ms):
        assert name in metrics.TYPES
        assert metrics.HELP[name]
        assert 0 <= value < 1e12, (name, labels)
        assert dict(labels)["container"] not in ("", "POD")
        if name.endswith("_bytes"):
            assert value % 4096 == 0


@given(starts)
def test_any_six_hours_hold_a_restart_and_pods_that_come_and_go(start_ms: int) -> None:
    """Whenever the demo starts, its history has each of the things that it promises to show."""
    ticks = range(start_ms, start_ms + PAST_MS, metrics.MINUTE_MS)
    names = [set(started_ms(time_ms)) for time_ms in ticks]
    cart = [{name for name in found if name.startswith("cart-")} for found in names]
    leaking = {started_ms(time_ms)[metrics.LEAKING_POD] for time_ms in ticks}
    assert len(leaking) > 1
    assert cart[-1] - cart[0]
    assert cart[0] - cart[-1]
    reports = {name for found in names for name in found if name.startswith("stock-report-")}
    assert 5 <= len(reports) <= 7


def test_a_restart_resets_the_counters_of_one_pod(past: dict) -> None:
    """In the demo's history the leaking pod's counters fall to nearly nothing, and nobody else's fall."""
    fallen = set()
    times = sorted(past)
    for earlier, later in itertools.pairwise(times):
        for key in past[earlier].keys() & past[later].keys():
            if metrics.TYPES[key[0]] == "counter" and past[later][key] < past[earlier][key]:
                fallen.add(pod_of(key[1]))
                assert past[later][key] < 0.05 * past[earlier][key]
    assert fallen == {metrics.LEAKING_POD}


def test_memory_of_the_leaking_pod_falls_when_it_restarts() -> None:
    """The reset has a cause that can be seen in another metric."""
    restart_ms = started_ms(NOW_MS)[metrics.LEAKING_POD]
    memory = [
        {pod_of(labels): value for (name, labels), value in scrape(at).items() if name.endswith("_bytes")}
        for at in (restart_ms - 1, restart_ms)
    ]
    assert memory[0][metrics.LEAKING_POD] > 2 * memory[1][metrics.LEAKING_POD]


def test_history_is_what_scrapes_would_have_seen(openmetrics: str, past: dict) -> None:
    """The text holds exactly the samples of every 15 s, as any OpenMetrics parser reads them."""
    read = defaultdict(dict)
    target = dict(history.TARGET_LABELS)
    for family in parse_openmetrics(openmetrics):
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key not in target}
            assert {key: sample.labels[key] for key in target} == target
            read[round(float(sample.timestamp) * 1000)][sample.name, tuple(labels.items())] = sample.value
    assert read == past


def test_history_is_grouped_and_in_order(openmetrics: str) -> None:
    """Each family stands once, each series once, its times rise by 15 s or more, and EOF ends the text."""
    lines = openmetrics.splitlines()
    assert lines[-1] == "# EOF"
    assert lines.count("# EOF") == 1
    assert openmetrics.endswith("# EOF\n")
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families)) == len(metrics.TYPES)
    done, series, time_s = set(), None, 0.0
    for line in lines:
        if line.startswith("#"):
            continue
        name, value, stamp = line.rsplit(" ", 2)
        assert re.fullmatch(r"\d+\.\d{3}", stamp)
        assert float(value) >= 0
        if name != series:
            assert name not in done
            done.add(name)
            series, time_s = name, 0.0
        assert float(stamp) >= time_s + history.INTERVAL_MS / 1000 - 1e-6
        time_s = float(stamp)


def test_history_ends_at_its_end() -> None:
    """The last scrape is at the end itself, to the millisecond, wherever that is."""
    file = io.StringIO()
    count = history.write_history(file, NOW_MS - 60_000, NOW_MS + 1_234)
    stamps = {line.rsplit(" ", 1)[1] for line in file.getvalue().splitlines() if not line.startswith("#")}
    assert max(stamps) == "1795460001.234"
    assert len(stamps) == 61_234 // history.INTERVAL_MS + 1
    assert count == sum(not line.startswith("#") for line in file.getvalue().splitlines())


def test_live_scrapes_continue_history(openmetrics: str) -> None:
    """The exporter shows the same series as the history's last scrape, with the values of its own moment."""
    shown = {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in parse_text(workload.exposition(NOW_MS))
        for sample in family.samples
    }
    assert shown == scrape(NOW_MS)
    stamp = f"{NOW_MS // 1000}.000"
    last = [line for line in openmetrics.splitlines() if line.endswith(stamp)]
    assert len(last) == len(shown)
    before, after = counters(NOW_MS), counters(NOW_MS + 5_000)
    assert before.keys() == after.keys()
    assert all(0 <= after[key] - before[key] < 5_000 for key in before)


@given(moments)
def test_exposition_is_well_formed(time_ms: int) -> None:
    """Any Prometheus client library reads the exporter's text, with the types that the demo declares."""
    for family in parse_text(workload.exposition(time_ms)):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert metrics.TYPES[name] == family.type
        assert {sample.name for sample in family.samples} <= {name}


@given(st.floats(0, 1e15))
def test_written_values_are_read_as_the_same_double(value: float) -> None:
    """Nothing is lost between a function's value and Prometheus."""
    assert float(metrics.value_text(value)) == value


def test_the_demo_deletes_only_what_it_made(tmp_path: Path) -> None:
    """A folder with somebody's files is refused and left as it was; the demo's own begins empty each time."""
    theirs, own = tmp_path / "theirs", tmp_path / "own"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("precious")
    with pytest.raises(demo.DemoError, match="not the demo's own"), demo.demo_folder(theirs):
        pass
    assert [path.name for path in theirs.iterdir()] == ["thesis.txt"]
    for _ in range(2):
        with demo.demo_folder(own):
            assert {path.name for path in own.iterdir()} == {demo.MARKER, "logs"}
            (own / "shop").mkdir()
            (own / "shop" / "cart.csv").write_text("timestamp,pod\n")
            (own / "linked").symlink_to(theirs)
    assert (theirs / "thesis.txt").read_text() == "precious"


def test_two_demos_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second is told so, before it deletes anything."""
    with demo.demo_folder(tmp_path / "data") as folder:
        (folder / "kept").touch()
        with pytest.raises(demo.DemoError, match="another demo is running"), demo.demo_folder(tmp_path / "data"):
            pass
        assert (folder / "kept").exists()


@pytest.mark.parametrize("tail_bytes", [None, 60, 10_000])
def test_a_growing_file_is_read_in_whole_rows(tmp_path: Path, tail_bytes: int | None) -> None:
    """Neither a row that is half written nor one that the tail cuts is taken for a row."""
    path = tmp_path / "cart.csv"
    path.write_text(
        "timestamp,pod,queue_depth\n"
        "2026-11-23T12:00:00Z,cart-0,1.0\n"
        "2026-11-23T12:00:10Z,cart-0,2.0\n"
        "2026-11-23T12:00:20Z,ca"
    )
    table = tables.read(path, tail_bytes)
    assert table.columns == ("timestamp", "pod", "queue_depth")
    assert table.rows[-1] == ("2026-11-23T12:00:10Z", "cart-0", "2.0")
    assert len(table.rows) == (1 if tail_bytes == 60 else 2)
    assert table.starts_ms()[-1] == 1_795_435_210_000
    assert tables.read(tmp_path / "none.csv", tail_bytes) is None


def test_shown_columns_fit_the_width() -> None:
    """Narrow metrics are shown first, in the file's order, and no line is too long."""
    table = tables.Table(
        ("timestamp", "pod", "a_very_long_metric_name_that_does_not_fit_at_all", "queue_depth", "up"),
        [("2026-11-23T12:00:00Z", "checkout-7c9f8b6d5-x2x4z", "1.0", "22.5", "1.0")],
    )
    columns = tables.fitting_columns(table, 80)
    assert columns == [0, 1, 3, 4]
    lines = tables.aligned([table.columns[i] for i in columns], [[row[i] for i in columns] for row in table.rows], 2)
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 80


def test_what_the_dashboard_shows_is_compared_cell_by_cell() -> None:
    """Another value, one too many or too few and an unknown or a missing anomaly are told, older windows are not."""
    table = tables.Table(
        ("timestamp", "pod", "queue_depth"),
        [
            ("2026-11-23T12:00:00Z", "cart-0", "5.0"),
            ("2026-11-23T12:00:10Z", "cart-0", "1.0"),
            ("2026-11-23T12:00:20Z", "cart-0", ""),
            ("2026-11-23T12:00:30Z", "cart-0", "7.0"),
        ],
    )
    noon_ms = 1_795_435_200_000
    from_ms, until_ms = noon_ms + 10_000, noon_ms + 30_000
    first, second = (dashboard.Place("shop", "cart-0", "queue_depth", noon_ms + ms) for ms in (10_000, 20_000))
    ill = frozenset({("cart-0", from_ms), ("cart-0", noon_ms)})

    def told(values: dict, anomalies: frozenset = ill, problems: tuple[str, ...] = ()) -> list[str]:
        shown = dashboard.Shown(from_ms, values, anomalies, problems)
        return dashboard.differences(shown, {"shop/cart.csv": table}, until_ms, ill)

    assert told({first: 1.0}) == []
    assert told({first: 1.0}, frozenset({("cart-0", from_ms)})) == []
    assert len(told({first: 1.5})) == len(told({})) == len(told({first: 1.0, second: 0.0})) == 1
    assert told({first: 1.0}, frozenset()) == [f"anomaly of cart-0 at {from_ms}"]
    assert told({first: 1.0}, ill | {("cart-1", noon_ms)}) == [f"anomaly of cart-1 at {noon_ms}"]
    assert told({first: 1.0}, ill, ("messages could not be read",)) == ["messages could not be read"]
    assert dashboard.differences(dashboard.Shown(from_ms, {}, frozenset(), ()), {}, until_ms, frozenset())
