// What a model has found.

import { breakable, byId, el, podLink, replace, shownNamespace } from "./dom.js";
import { ask, follow, note } from "./live.js";
import { clock, day, exact, hasSeconds, moment, plural, unitOf, written } from "./units.js";

const PLAIN = { kind: "count", per: "" };
const TYPING_MS = 200;

async function load() {
  const query = new URLSearchParams({ limit: "200" });
  const text = byId("q").value.trim();
  if (text) query.set("q", text);
  const told = await ask("api/anomalies", query);
  draw(told, text);
  return told;
}

function draw(told, text) {
  byId("tools").hidden = !told.found && !text;
  byId("found").textContent = told.pods_judged
    ? `${plural(told.found, "anomalous window")}; of ${plural(told.pods_judged, "pod")} that a model has judged of late, ${told.pods_anomalous} ${told.pods_anomalous === 1 ? "is" : "are"} anomalous now`
    : "";
  replace(byId("list"), told.found ? table(told) : nothing(told, text));
}

function nothing(told, text) {
  if (!told.reading.is_live) return note("Reading …");
  if (!told.has_topic) {
    return note(
      "No model writes anomalies yet",
      el("p", {}, `The topic ${told.topic} does not exist. A service that reads the pods' windows and finds anomalies writes them there; an example is in docker/ml_service.`),
    );
  }
  if (text) return note("No anomaly matches", el("p", {}, "Anomalies are found by words that are in their pods' namespace, service or name."));
  return note("No anomalies of late", el("p", {}, told.pods_judged ? "Every pod that was judged is as it mostly is." : `Nothing has been written to ${told.topic} of late.`));
}

function table(told) {
  return el(
    "div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Anomalies", "data-key": "table" },
    el(
      "table", { class: "plain" },
      el("thead", {}, el("tr", {}, ["Window (UTC)", "Pod"].map((head) => el("th", { scope: "col" }, head)), el("th", { scope: "col", class: "number" }, "Score"), el("th", { scope: "col" }, "What is not as it mostly is"))),
      el("tbody", {}, told.anomalies.map((one) => row(one))),
    ),
    told.found > told.anomalies.length ? el("p", { class: "about" }, `${told.found - told.anomalies.length} older ones are left out`) : null,
  );
}

function row(one) {
  const href = podLink(one.namespace, one.pod);
  return el(
    "tr", { "data-anomaly": `${shownNamespace(one.namespace)}/${one.pod}` },
    el("td", { class: "tight", title: `${moment(one.window_start)} to ${moment(one.window_end)}` }, `${day(one.window_start)} ${clock(one.window_start, hasSeconds(one.window_start, one.window_end))}`),
    el("th", { scope: "row" }, el("span", { class: "namespace" }, `${shownNamespace(one.namespace)}/`), el("wbr"), el("a", { href, "data-key": `${href} ${one.window_start}` }, breakable(one.pod))),
    el("td", { class: "number", title: exact(one.score) }, written(one.score, PLAIN)),
    el("td", {}, one.reasons.length ? el("ul", { class: "reasons" }, one.reasons.map((reason) => el("li", {}, told(reason, one.method)))) : "no reason told"),
  );
}

function told({ metric, value, normal, deviation }, method) {
  const unit = unitOf(metric, method);
  return [
    el("span", { class: "metric-name" }, breakable(metric)), " ",
    el("strong", { title: exact(value) }, written(value, unit)),
    el("span", { class: "about" }, `, mostly ${written(normal, unit)}${typeof deviation === "number" ? ` (${deviation > 0 ? "+" : "−"}${written(Math.abs(deviation), PLAIN)} σ)` : ""}`),
  ];
}

let timer = null;
byId("q").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => again(), TYPING_MS);
});
byId("tools").addEventListener("submit", (event) => event.preventDefault());
const { again } = follow(load);
