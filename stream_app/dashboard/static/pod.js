// One pod: a chart a metric.

import { Chart, Charts } from "./chart.js";
import { breakable, byId, el, replace, serviceLink, shownNamespace } from "./dom.js";
import { ask, follow, note } from "./live.js";
import { clock, moment, plural, unitOf, written } from "./units.js";

const asked = new URLSearchParams(location.search);
const namespace = asked.get("namespace") ?? "";
const pod = asked.get("pod") ?? "";
const path = `api/pods/${encodeURIComponent(shownNamespace(namespace))}/${encodeURIComponent(pod)}`;
const charts = new Charts();
const shown = new Map();
const TYPING_MS = 200;

async function load() {
  const query = new URLSearchParams();
  const text = byId("q").value.trim();
  if (text) query.set("q", text);
  let told;
  try {
    told = await ask(path, query);
  } catch (error) {
    if (error.status !== 404) throw error;
    const state = await ask("api/services", "per_page=1&pods=1");
    drawNothing(state);
    return state;
  }
  draw(told);
  return told;
}

function drawNothing(state) {
  name();
  replace(
    byId("list"),
    state.reading.is_live && state.reading.share === 1
      ? note("Nothing is known of this pod", el("p", {}, "It has no window of late: it may be gone, or its name is another. ", el("a", { href: "." }, "Show all pods")))
      : note("Reading …", el("p", {}, "The newest windows are read from Kafka first; this takes a few seconds.")),
  );
}

function name() {
  document.title = `${pod} · podstream`;
  replace(
    byId("name"),
    el("span", { class: "namespace" }, `${shownNamespace(namespace)}/`), el("wbr"), breakable(pod),
  );
}

function draw(told) {
  name();
  const facts = [
    el("span", {}, "service ", el("a", { href: serviceLink(told.namespace, told.service), "data-key": "service" }, told.service)),
    el("span", {}, `newest window ${moment(told.window_start)} to ${clock(told.window_end, true)} UTC`),
    el("span", {}, plural(told.samples, "sample")),
    told.revision ? el("span", {}, `revision ${told.revision}`) : null,
    told.is_silent ? el("span", { class: "badge quiet" }, "silent") : null,
    told.partial ? el("span", { class: "badge warn" }, "partial") : null,
    told.incomplete.length ? el("span", { class: "badge warn" }, `incomplete: ${told.incomplete.map((one) => (one === "*" ? "samples of any metric are missing" : one)).join(", ")}`) : null,
    told.verdict?.anomalous ? el("span", { class: "badge bad" }, `anomaly, score ${written(told.verdict.score, PLAIN)}: ${told.verdict.reasons.map(({ metric }) => metric).join(", ") || "no reason told"}`) : null,
  ];
  const head = byId("head");
  head.querySelector(".facts")?.remove();
  head.append(el("p", { class: "facts" }, facts));
  const names = Object.keys(told.metrics);
  byId("tools").hidden = told.metrics_total < 7 && !byId("q").value;
  byId("found").textContent = names.length < told.metrics_total
    ? `${names.length} of ${plural(told.metrics_total, "metric")} are shown: type a part of the others' names`
    : names.length ? plural(names.length, "metric") : "No metric has this in its name.";
  const list = byId("list");
  for (const child of [...list.children]) if (child.matches(".empty")) child.remove();
  for (const [metric, chart] of shown) {
    if (!(metric in told.metrics)) {
      chart.remove();
      shown.delete(metric);
    }
  }
  const anomalous = new Set(told.anomalies.map(({ window_start: start }) => start));
  const partial = new Set(told.partial_windows);
  names.forEach((metric, at) => {
    let chart = shown.get(metric);
    if (!chart) {
      chart = new Chart(metric, unitOf(metric, told.view.method), charts, breakable(metric));
      chart.element.dataset.metric = metric;
      shown.set(metric, chart);
    }
    if (list.children[at] !== chart.element) list.insertBefore(chart.element, list.children[at] ?? null);
    const { value, history } = told.metrics[metric];
    chart.show({ windows: told.windows, values: history, latest: value, latestAt: told.window_start, anomalous, partial });
  });
}

const PLAIN = { kind: "count", per: "" };

let timer = null;
byId("q").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => again(), TYPING_MS);
});
byId("tools").addEventListener("submit", (event) => event.preventDefault());
name();
const { again } = follow(load);
