"""The dashboard in a real browser, against a running pipeline: what it shows is what the topics say."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from urllib.parse import urlencode

import builders
import history
import numpy as np
import orjson
import pandas as pd
import pytest
import requests
from browsing import Pipeline, as_number, same, worker_with_pages
from commands import end, view_of, wait_until_windowed
from confluent_kafka.admin import NewTopic
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect

from ingestor.core.time_range import TimeRange
from ingestor.core.topics import message_key
from ingestor.kafka import connect, read_to_end
from ingestor.local.kafka import LocalKafka
from ingestor.local.prometheus import LocalPrometheus

MINUTE_MS = 60_000

METRICS = sorted(history.METRICS)
HOSTILE = '<img src=x onerror="window.hacked=1">'
HOSTILE_METRIC = '</script><script>window.hacked=1</script>{le="0.5"}'
HOSTILE_NAMESPACE = '"><svg onload=window.hacked=1>'
WEB = "web-7d9f8b6c5-x2x4z"


def opened(page: Page, pipeline: Pipeline, path: str = "/", **query: str | list[str]) -> None:
    """Open a page and wait until all that was written before is read."""
    page.goto(f"{pipeline.url}{path}?{urlencode(query, doseq=True)}")
    expect(page.locator("#state-word")).to_have_text("Live")


def row(page: Page, namespace: str, pod: str) -> Locator:
    """Return a pod's row in the overview."""
    return page.locator(f"tr[data-pod={quoted(f'{namespace}/{pod}')}]")


def quoted(text: str) -> str:
    """Write a text as CSS has it."""
    return orjson.dumps(text).decode()


def clock(time_ms: int) -> str:
    return f"{pd.Timestamp(time_ms, unit='ms'):%H:%M}"


def shown_values(pod: Locator) -> dict[str, float | None]:
    told = pod.locator("td.metric").evaluate_all(
        "cells => cells.map((cell) => [cell.dataset.metric, cell.dataset.value])"
    )
    return {metric: as_number(value) for metric, value in told}


def test_values_on_the_page_are_the_records(page: Page, pipeline: Pipeline) -> None:
    """Every pod of two hours is there, below its service, with the values of its newest record."""
    opened(page, pipeline, metric=METRICS, per_page="50")
    newest = {key: r for key, r in pipeline.newest().items() if key in history.PODS}
    assert len(newest) > 8
    for (namespace, pod), record in newest.items():
        mine = row(page, namespace or "_", pod)
        expect(mine).to_have_count(1)
        values = shown_values(mine)
        assert values.keys() == set(METRICS)
        assert all(same(value, record.metrics.get(metric)) for metric, value in values.items()), (pod, values)
        expect(mine.locator("xpath=..").locator("tr.service a")).to_have_text(record.service)
    silent = row(page, "shop", history.VANISHES)
    expect(silent.locator(".badge")).to_have_text("silent")
    depth = silent.locator("[data-metric=queue_depth]")
    read = float(depth.locator(".value").inner_text().replace(",", ""))
    assert read == pytest.approx(newest["shop", history.VANISHES].metrics["queue_depth"], rel=1e-3)


def test_a_pods_charts_and_tables_are_the_records(page: Page, pipeline: Pipeline) -> None:
    """Below each chart is a table of all its values, to the last digit; the arrow keys read the chart itself out."""
    pod = history.HAS_GAPS
    opened(page, pipeline, "/pod", namespace="data", pod=pod)
    records = pipeline.records()
    newest_ms = max(r.window_start_ms for r in records)
    kept = {r.window_start_ms: r for r in records if r.pod == pod and r.window_start_ms > newest_ms - 120 * MINUTE_MS}
    assert len(kept) > 60
    for metric in METRICS:
        chart = page.locator(f"figure[data-metric={metric}]")
        chart.locator("summary").click()
        expected = [
            (start_ms, kept[start_ms]) for start_ms in sorted(kept, reverse=True) if metric in kept[start_ms].metrics
        ]
        lines = chart.locator("tbody tr")
        expect(lines).to_have_count(len(expected))
        rows = lines.evaluate_all("rows => rows.map((row) => [...row.children].map((cell) => cell.textContent))")
        for (moment, value, mark), (start_ms, record) in zip(rows, expected, strict=True):
            assert pd.Timestamp(moment, tz="UTC") == pd.Timestamp(start_ms, unit="ms", tz="UTC")
            assert same(as_number(value), record.metrics[metric])
            assert mark == ("partial" if record.partial else "")
    first = page.locator(f"figure[data-metric={METRICS[0]}]")
    values = {start_ms: r.metrics[METRICS[0]] for start_ms, r in kept.items() if METRICS[0] in r.metrics}
    first.locator(".drawing").focus()
    for back in range(20):
        page.keyboard.press("ArrowLeft")
        start_ms = newest_ms - back * MINUTE_MS
        expect(first.locator(".when")).to_have_text(f"{clock(start_ms)} UTC")
        told = first.locator("output strong").get_attribute("data-value")
        value = values.get(start_ms)
        assert told == "no value" if value is None else same(as_number(told), value)
    assert first.locator(".cursor").count() == 1
    page.keyboard.press("Escape")
    assert page.locator(".cursor").count() == 0
    gaps = sum(later - earlier > MINUTE_MS for earlier, later in pairwise(sorted(values)))
    assert gaps > 0
    assert (first.locator("path.line").get_attribute("d") or "").count("M") == gaps + 1


def test_a_new_window_appears_without_reload(page: Page, pipeline: Pipeline, prometheus: LocalPrometheus) -> None:
    """While the page is open a poller goes on: newer values take the place of the old ones, what was typed stays."""
    opened(page, pipeline, metric="queue_depth", per_page="50")
    search = page.get_by_label("Search")
    search.fill("web-7d9f8b6c5")
    expect(page.locator("tr.service")).to_have_count(1)
    page.evaluate("window.stays = 1")
    before = pipeline.newest()["shop", WEB]
    assert same(shown_values(row(page, "shop", WEB))["queue_depth"], before.metrics["queue_depth"])
    pipeline.poll(prometheus, before.window_end_ms, history.END_MS)
    after = pipeline.newest()["shop", WEB]
    assert after.window_start_ms > before.window_start_ms
    mine = row(page, "shop", WEB)
    expect(mine.locator(".window")).to_contain_text(clock(after.window_end_ms))
    assert same(shown_values(mine)["queue_depth"], after.metrics["queue_depth"])
    expect(page.locator("#state-age")).to_contain_text(clock(after.window_end_ms))
    assert page.evaluate("window.stays") == 1
    expect(search).to_be_focused()
    expect(search).to_have_value("web-7d9f8b6c5")


def test_what_is_hostile_is_shown_and_does_nothing(page: Page, pipeline: Pipeline) -> None:
    """Names of pods, namespaces and metrics that are markup are text, on every page; so is a dead letter's key."""
    stretch = TimeRange(
        history.START_MS // MINUTE_MS * MINUTE_MS, history.START_MS // MINUTE_MS * MINUTE_MS + 120 * MINUTE_MS
    )
    stamps = np.arange(stretch.start_ms, stretch.end_ms, 30_000)
    rows = [
        (HOSTILE_NAMESPACE, HOSTILE, name, "", at, 7.25) for name in (HOSTILE_METRIC, "cpu") for at in stamps.tolist()
    ]
    columns = ["namespace", "pod", "metric", "series", "timestamp", "value"]
    streams = builders.messages(pd.DataFrame(rows, columns=columns), [stretch], HOSTILE)
    messages = [
        {"partition": partition, "headers": headers, "value": value}
        for partition, stream in enumerate(streams)
        for headers, value in stream
    ]
    junk = {"partition": 0, "key": HOSTILE.encode(), "value": b"junk"}
    pipeline.produce(pipeline.view.topics.range_chunks, *messages, junk)
    wait_until_windowed(pipeline.kafka, pipeline.view, pipeline.worker)
    opened(page, pipeline, namespace=HOSTILE_NAMESPACE, metric=HOSTILE_METRIC)
    mine = row(page, HOSTILE_NAMESPACE, HOSTILE)
    expect(mine).to_have_count(1)
    assert shown_values(mine) == {HOSTILE_METRIC: 7.25}
    mine.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{HOSTILE_NAMESPACE}/{HOSTILE}")
    expect(page.get_by_role("heading", level=2, name=HOSTILE_METRIC)).to_have_count(1)
    page.goto(f"{pipeline.url}/pipeline")
    letters = page.get_by_role("region", name="Dead letters").get_by_role("row")
    expect(letters.filter(has_text=HOSTILE)).to_contain_text(f"{pipeline.view.topics.range_chunks} 0@")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main svg[onload], main script").count() == 0


def test_the_pipelines_own_state(page: Page, pipeline: Pipeline) -> None:
    """Jobs stand where their positions say, partitions have a worker, and this one is ready and has read all."""
    opened(page, pipeline, "/pipeline")
    told = requests.get(f"{pipeline.url}/api/pipeline", timeout=60).json()
    positions = {
        message.key().decode(): orjson.loads(message.value())
        for message in read_to_end(pipeline.kafka.cluster, pipeline.view.topics.positions)
    }
    assert {job["job"]: job["position"] for job in told["jobs"]} == {
        job: position["position_ms"] for job, position in positions.items()
    }
    for job, position in positions.items():
        line = page.locator("tr").filter(has=page.locator("th", has_text=job))
        expect(line).to_contain_text(f"{pd.Timestamp(position['position_ms'], unit='ms'):%Y-%m-%d %H:%M:%S}")
        expect(line).to_contain_text(f"{position['samples']:,}")
    section = page.get_by_role("table").filter(has_text="Newest window's end")
    expect(section.locator("tbody tr")).to_have_count(builders.PARTITIONS)
    expect(section).to_contain_text("slot-0 on")
    expect(section.get_by_text("this worker")).to_have_count(builders.PARTITIONS)
    expect(page.locator(".tile").first).to_have_text(f"This workerready{builders.PARTITIONS} partitions")
    assert set(told["worker"]["lag"].values()) == {0}


def test_anomalies(page: Page, pipeline: Pipeline) -> None:
    """While no model writes, the page says so; what one writes appears by itself, there and at the pod."""
    opened(page, pipeline, "/anomalies")
    expect(page.get_by_role("heading", name="No model writes anomalies yet")).to_be_visible()
    topic = f"{pipeline.view.topics.prefix}.anomalies"
    connect(pipeline.kafka.cluster).create_topics([NewTopic(topic, 2, 1)])[topic].result()
    record = pipeline.newest()["data", "postgres-0"]
    reasons = [{"metric": "queue_depth", "value": 61.5, "normal": 4.25, "deviation": 8.5}]
    who = {"namespace": record.namespace, "pod": record.pod, "service": record.service}
    when = {"window_start": record.window_start_ms, "window_end": record.window_end_ms, "chunk_size": "1m"}
    what = {"method": "mean", "revision": 0, "score": 8.5, "anomalous": True, "reasons": reasons, "version": 1}
    message = {"key": message_key("data", "postgres-0"), "value": orjson.dumps(who | when | what), "partition": 1}
    pipeline.produce(topic, message)
    line = page.locator("[data-anomaly='data/postgres-0']")
    expect(line).to_contain_text("queue_depth 61.5, mostly 4.25 (+8.5 σ)")  # noqa: RUF001
    expect(page.get_by_role("navigation", name="Pages")).to_contain_text("Anomalies1")
    line.get_by_role("link").click()
    expect(page.locator(".facts .badge.bad")).to_have_text("anomaly, score 8.5: queue_depth")
    expect(page.locator("figure").first.locator("rect.anomalous")).to_have_count(1)
    page.goto(f"{pipeline.url}/?sort=anomalies")
    expect(page.locator("tr.pod").first).to_contain_text("anomaly, score 8.5")


def test_search_metrics_and_order(page: Page, pipeline: Pipeline) -> None:
    """What is chosen stands in the address, and is there again when the page is loaded anew."""
    opened(page, pipeline)
    page.get_by_label("Search").fill("POSTGRES")
    expect(page.locator("#found")).to_contain_text("3 pods of 1 service")
    page.locator("summary", has_text="Metrics").click()
    page.get_by_role("checkbox", name="temperature_celsius").check()
    expect(page.locator("thead th")).to_have_count(2 + 4)
    for metric in ("container_memory_rss", "http_requests_total", "queue_depth"):
        page.get_by_role("checkbox", name=metric).uncheck()
        expect(page.locator(f"thead th[title={metric}]")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(page.locator("summary", has_text="Metrics")).to_be_focused()
    page.get_by_label("Sort by").select_option("value")
    newest = pipeline.newest()
    values = {pod: r.metrics["temperature_celsius"] for (_, pod), r in newest.items() if pod.startswith("postgres")}
    in_order = sorted(values, key=lambda pod: -values[pod])
    expect(page.locator("tr.pod th a")).to_have_text(in_order)
    page.reload()
    expect(page.locator("tr.pod th a")).to_have_text(in_order)
    expect(page.get_by_label("Search")).to_have_value("POSTGRES")
    page.get_by_label("Search").fill("no such pod")
    expect(page.get_by_role("heading", name="No pod matches")).to_be_visible()


PATHS = ["/", "/pod?namespace=data&pod=postgres-0", "/pipeline", "/anomalies"]


@pytest.mark.parametrize("size", [{"width": 360, "height": 740}, {"width": 1280, "height": 800}], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_legible(page: Page, pipeline: Pipeline, size: ViewportSize, scheme: str) -> None:
    """Nothing is wider than the screen, text stands out from its ground (AA), what can be operated has a name."""
    for path in PATHS:
        page.goto(f"{pipeline.url}{path}")
        expect(page.locator("#state-word")).to_have_text("Live")
        expect(page.locator("#list > *").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
        assert page.evaluate(FAINT) == [], path
        assert page.evaluate(NAMELESS) == [], path
        for landmark in ("banner", "navigation", "main", "contentinfo"):
            assert page.get_by_role(landmark).count() >= 1
        assert page.locator("h1").count() == 1


def test_no_text_of_a_chart_is_cut(page: Page, pipeline: Pipeline) -> None:
    """Wherever the times stand, the last one at the right edge too, however wide the chart is and its font."""
    opened(page, pipeline)
    minute = MINUTE_MS
    for size_ms in (10_000, minute, 60 * minute, 1440 * minute):
        for last_ms in (history.END_MS, history.END_MS - size_ms, history.END_MS // (1440 * minute) * 1440 * minute):
            windows = [last_ms - size_ms * back for back in reversed(range(120))]
            for width in (320, 500, 900):
                assert page.evaluate(CUT, {"windows": windows, "width": width}) == []


CUT = """async ({ windows, width }) => {
  const { Chart, Charts } = await import("./static/chart.js");
  const chart = new Chart("queue_depth", { kind: "count", per: "" }, new Charts(), "queue_depth");
  chart.element.style.width = `${width}px`;
  chart.element.style.letterSpacing = "1px";
  document.body.append(chart.element);
  const latest = { latest: 1, latestAt: windows.at(-1), anomalous: new Set(), partial: new Set() };
  chart.show({ windows, values: windows.map((_, at) => at), ...latest });
  while (!chart.element.querySelector("svg")) await new Promise(requestAnimationFrame);
  const frame = chart.element.querySelector("svg").getBoundingClientRect();
  const texts = [...chart.element.querySelectorAll("text")];
  const places = texts.map((one) => [one.textContent, one.getBoundingClientRect()]);
  chart.remove();
  if (!texts.length) return ["no text"];
  return places.filter(([, { right }]) => right > frame.right + 0.5)
    .map(([text, { right }]) => `${text} ${right - frame.right}`);
}"""

FAINT = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (colour) => colour.slice(0, 3).map((c) => linear(c / 255))
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = channels(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility({ visibilityProperty: true })) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(channels(element.closest("svg") ? style.fill : style.color)), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${walker.currentNode.data.trim().slice(0, 40)}`);
  }
  return faint;
}"""

NAMELESS = """() => [...document.querySelectorAll("a, button, input, select, summary, [tabindex='0']")]
  .filter((one) => one.checkVisibility() && !(one.textContent.trim() || one.ariaLabel || one.labels?.length))
  .map((one) => one.outerHTML.slice(0, 80))"""


def test_by_keyboard(page: Page, pipeline: Pipeline) -> None:
    """The first stop skips to the content; every stop is seen to have the focus."""
    opened(page, pipeline)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
    for _ in range(15):
        page.keyboard.press("Tab")
        width = page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)")
        assert width >= 1, page.evaluate("document.activeElement.outerHTML")


def test_nothing_yet(browser: Browser, kafka: LocalKafka, tmp_path: Path) -> None:
    """Where nothing was ever read, the pages say what to type; once the worker has ended, that it is gone."""
    tab = browser.new_page()
    with worker_with_pages(kafka, view_of("nothing-yet", "1m", "mean"), tmp_path) as pipeline:
        opened(tab, pipeline)
        expect(tab.get_by_role("heading", name="No poller has run yet")).to_be_visible()
        expect(tab.locator("pre")).to_contain_text("ingestor run --url")
        tab.goto(f"{pipeline.url}/pipeline")
        expect(tab.locator("pre")).to_contain_text("--topic-prefix nothing-yet")
        expect(tab.locator("#state-word")).to_have_text("Live")
        end(pipeline.worker)
        expect(tab.locator("#state-word")).to_have_text("Connection lost, trying again")
    tab.close()
