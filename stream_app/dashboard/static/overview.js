// Services and their pods, with the newest values of a few metrics and how they came there.

import { sparkline } from "./chart.js";
import { breakable, byId, el, podLink, replace, serviceLink, shownNamespace, unseen } from "./dom.js";
import { ask, follow, note, nothingYet } from "./live.js";
import { clock, day, exact, formatted, hasSeconds, plural, unitOf, written } from "./units.js";

const MOST_METRICS = 6;
const TYPING_MS = 200;

// What is asked for stands in the address, so that it can be sent to somebody.
const asked = new URLSearchParams(location.search);
const isOneService = asked.has("service");
let shownNames = "";
let shownNamespaces = null;
let chosen = [];

function parameters() {
  const query = new URLSearchParams(asked);
  if (isOneService) query.set("pods", "50");
  return query;
}

function change(name, ...values) {
  asked.delete(name);
  for (const value of values) if (value) asked.append(name, value);
  if (name !== "metric") asked.delete(isOneService ? "pod_page" : "page");
  const query = String(asked);
  history.replaceState(null, "", query ? `?${query}` : ".");
  again();
}

function linkTo(name, value) {
  const query = new URLSearchParams(asked);
  query.set(name, value);
  return `?${query}`;
}

async function load() {
  const query = String(asked);
  const told = await ask("api/services", parameters());
  // Of what was asked for meanwhile the answer comes next.
  if (query === String(asked)) draw(told);
  return told;
}

function draw(told) {
  byId("tools").hidden = !told.pods_total;
  drawTools(told);
  drawFound(told);
  drawPaging(told);
  if (!told.pods_total) replace(byId("list"), nothingYet(told));
  else if (!told.services.length) replace(byId("list"), noMatch());
  else replace(byId("list"), table(told));
}

function noMatch() {
  return note(
    "No pod matches",
    el("p", {}, "Pods are found by words that are in their namespace, service or name. ", el("a", { href: "." }, "Show all pods")),
  );
}

function drawFound(told) {
  const all = told.pods_found === told.pods_total;
  const of = told.view.of === "pod" ? "pod" : "service";
  const text = !told.pods_total
    ? ""
    : of === "service"
      ? plural(told.services_found, "service")
      : `${plural(told.pods_found, "pod")} of ${plural(told.services_found, "service")}${all ? "" : `, of ${plural(told.pods_total, "pod")} in all`}`;
  replace(
    byId("found"),
    el("span", {}, text),
    isOneService ? el("a", { href: ".", "data-key": "all" }, "Show all services") : null,
  );
}

function table(told) {
  const units = Object.fromEntries(told.metrics.map((metric) => [metric, unitOf(metric, told.view.method)]));
  const columns = told.metrics.length + 2;
  return el(
    "table", { class: "pods", role: "table" },
    el("caption", { class: "unseen" }, "Pods by service: newest values, and the windows before"),
    el(
      "thead", { role: "rowgroup" },
      el(
        "tr", { role: "row" },
        el("th", { scope: "col", role: "columnheader", class: "name" }, told.view.of === "pod" ? "Pod" : "Service"),
        told.metrics.map((metric) => el("th", { scope: "col", role: "columnheader", class: "metric", title: metric }, breakable(metric))),
        el("th", { scope: "col", role: "columnheader", class: "window" }, "Window"),
      ),
    ),
    told.services.map((service) => body(told, service, units, columns)),
  );
}

function body(told, service, units, columns) {
  const { namespace } = service;
  const isOfPods = told.view.of === "pod";
  const rows = service.pods.map((pod) => podRow(told, namespace, pod, units));
  if (!isOfPods) return el("tbody", { role: "rowgroup" }, rows);
  const alive = service.pods_found - service.silent;
  const left = service.pods_found - service.pods.length;
  const href = serviceLink(namespace, service.service);
  return el(
    "tbody", { role: "rowgroup", "data-service": `${shownNamespace(namespace)}/${service.service}` },
    el(
      "tr", { class: "service", role: "row" },
      el(
        "th", { scope: "rowgroup", role: "rowheader", class: "name" },
        el("span", { class: "namespace" }, `${shownNamespace(namespace)}/`), el("wbr"),
        el("a", { href, "data-key": href }, breakable(service.service)),
        el("span", { class: "about" }, [
          [
            alive > 1 ? `mean of ${plural(alive, "pod")}` : alive ? "1 pod" : "",
            service.silent ? `${service.silent} silent` : "",
          ].filter(Boolean).join(", "),
        ]),
        service.anomalous ? badge("bad", plural(service.anomalous, "anomaly", "anomalies")) : null,
      ),
      told.metrics.map((metric) =>
        service.pods_found > 1
          ? cell(metric, service.values[metric], service.history[metric], units[metric])
          : el("td", { role: "cell", class: "metric none" })),
      el("td", { role: "cell", class: "window" }),
    ),
    rows,
    left > 0 && !isOneService
      ? el("tr", { class: "more", role: "row" }, el("td", { colspan: columns, role: "cell" },
          el("a", { href: `${href}${alsoAsked()}`, "data-key": `${href} more` }, `and ${plural(left, "more pod")}`)))
      : null,
  );
}

function alsoAsked() {
  return ["sort", "metric"].flatMap((name) => asked.getAll(name).map((value) => `&${new URLSearchParams([[name, value]])}`)).join("");
}

function podRow(told, namespace, pod, units) {
  const href = podLink(namespace, pod.pod);
  const end = pod.window_end;
  return el(
    "tr", { role: "row", class: pod.is_silent ? "pod silent" : "pod", "data-pod": `${shownNamespace(namespace)}/${pod.pod}` },
    el(
      "th", { scope: "row", role: "rowheader", class: "name" },
      el("a", { href, "data-key": href }, breakable(pod.pod)),
      pod.anomaly ? badge("bad", `anomaly, score ${written(pod.anomaly.score, { kind: "count", per: "" })}`) : null,
      pod.is_silent ? badge("quiet", "silent") : null,
      pod.incomplete ? badge("warn", "incomplete") : null,
    ),
    told.metrics.map((metric) => cell(metric, pod.values[metric], pod.history[metric], units[metric])),
    el(
      "td", { role: "cell", class: "window", title: "the window's end, UTC" },
      el("span", { class: "label" }, "window to "),
      told.newest_window_end !== null && day(end) !== day(told.newest_window_end) ? `${day(end)} ` : "",
      clock(end, hasSeconds(told.newest_window_start, told.newest_window_end)),
      pod.partial ? el("span", { class: "about" }, " partial") : null,
    ),
  );
}

function cell(metric, value, history, unit) {
  const { text, unit: name } = formatted(value, unit, true);
  return el(
    "td", { role: "cell", class: "metric", "data-metric": metric, "data-value": value === null ? "" : String(value) },
    el("span", { class: "label" }, breakable(metric)),
    el("span", { class: "reading" },
      el("span", { class: value === null ? "value none" : "value", title: exact(value) }, text, name ? el("span", { class: "unit" }, ` ${name}`) : null),
      history ? sparkline(history, unit) : el("span", { class: "spark" })),
  );
}

const badge = (kind, text) => el("span", { class: `badge ${kind}` }, text);

function drawPaging(told) {
  const service = isOneService ? told.services[0] : null;
  const [name, page, pages] = isOneService
    ? ["pod_page", Number(asked.get("pod_page") ?? 1), service?.pod_pages ?? 1]
    : ["page", told.page, told.pages];
  replace(
    byId("paging"),
    pages > 1 || page > 1
      ? [
          page > 1 ? el("a", { href: linkTo(name, page - 1), rel: "prev", "data-key": "prev" }, "← Before") : el("span", { class: "off" }, "← Before"),
          el("span", {}, `Page ${page} of ${pages}`),
          page < pages ? el("a", { href: linkTo(name, page + 1), rel: "next", "data-key": "next" }, "Next →") : el("span", { class: "off" }, "Next →"),
        ]
      : [],
  );
}

function drawTools(told) {
  const namespaces = JSON.stringify(told.namespaces);
  if (namespaces !== shownNamespaces) {
    shownNamespaces = namespaces;
    const select = byId("namespace");
    const wanted = asked.get("namespace");
    const all = [...new Set([...told.namespaces.map(shownNamespace), ...(wanted === null ? [] : [wanted])])];
    select.replaceChildren(
      el("option", { value: "" }, "all"),
      ...all.map((name) => el("option", { value: name, selected: name === wanted }, name)),
    );
  }
  chosen = told.metrics;
  byId("chosen").textContent = `${chosen.length}/${told.known_metrics.length}`;
  const names = JSON.stringify([chosen, told.known_metrics.map(({ name }) => name)]);
  if (names !== shownNames) {
    shownNames = names;
    drawMetrics(told);
  }
}

function drawMetrics(told) {
  const known = [...new Set([...chosen, ...told.known_metrics.map(({ name }) => name)])];
  const pods = Object.fromEntries(told.known_metrics.map(({ name, pods: count }) => [name, count]));
  replace(
    byId("metric-list"),
    known.map((name, at) => {
      const box = el("input", { type: "checkbox", value: name, "data-key": `metric ${name}`, checked: chosen.includes(name) });
      box.addEventListener("change", () => choose(name, box.checked));
      return el("label", { class: at === chosen.length - 1 && at < known.length - 1 ? "choice last" : "choice", title: name }, box,
        el("span", {}, breakable(name)), el("span", { class: "about" }, plural(pods[name] ?? 0, "pod")));
    }),
  );
  filterMetrics();
}

function choose(name, isWanted) {
  const wanted = chosen.filter((other) => other !== name);
  if (isWanted) wanted.push(name);
  // The last one stays: a table without a metric shows nothing.
  change("metric", ...(wanted.length ? wanted.slice(-MOST_METRICS) : chosen));
}

function filterMetrics() {
  const words = byId("find-metric").value.toLowerCase().split(/\s+/);
  for (const label of byId("metric-list").children) {
    label.hidden = !words.every((word) => label.title.toLowerCase().includes(word));
  }
}

function listen() {
  const search = byId("q");
  search.value = asked.get("q") ?? "";
  byId("sort").value = asked.get("sort") ?? "name";
  let timer = null;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => change("q", search.value.trim()), TYPING_MS);
  });
  byId("namespace").addEventListener("change", (event) => change("namespace", event.target.value));
  byId("sort").addEventListener("change", (event) => change("sort", event.target.value));
  byId("find-metric").addEventListener("input", filterMetrics);
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  const chooser = byId("chooser");
  chooser.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && chooser.open) {
      chooser.open = false;
      chooser.querySelector("summary").focus();
      event.preventDefault();
    }
  });
  document.addEventListener("pointerdown", (event) => {
    if (!chooser.contains(event.target)) chooser.open = false;
  });
}

listen();
const { again } = follow(load);
