// What all pages share: their heads and feet, asking the API, and being told when there is something new.

import { byId, el, replace } from "./dom.js";
import { clock, day, length } from "./units.js";

const PAGES = [[".", "Pods", "/"], ["pipeline", "Pipeline", "/pipeline"], ["anomalies", "Anomalies", "/anomalies"]];
const LEAST_MS = 1000;

// The worker's clock less ours.
let aheadMs = 0;
let newest = null;
let chunkSize = "";

export const now = () => Date.now() + aheadMs;

// Why there is no answer: the worker's own words, or that it has none. Anything else that fails is a defect of the page.
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function ask(path, parameters) {
  const query = String(parameters ?? "");
  let answer, told;
  try {
    answer = await fetch(query ? `${path}?${query}` : path, { headers: { Accept: "application/json" } });
    told = await answer.json();
  } catch {
    throw new Refused(0, "The worker does not answer. Is it running?");
  }
  const date = Date.parse(answer.headers.get("Date") ?? "");
  if (!Number.isNaN(date)) aheadMs = date + 500 - Date.now();
  if (!answer.ok) throw new Refused(answer.status, told.error);
  return told;
}

// Calls `load` now, whenever the worker has something new (once a second at most), and when `again` is called.
export function follow(load) {
  navigation();
  let isLoading = false;
  let isWanted = false;
  let at = 0;

  async function reload() {
    if (isLoading) {
      isWanted = true;
      return;
    }
    isLoading = true;
    isWanted = false;
    at = Date.now();
    try {
      tell(await load());
      problem("");
    } catch (error) {
      problem(error instanceof Refused ? error.message : `A defect of this page: ${error}`);
      if (!(error instanceof Refused)) console.error(error);
    }
    isLoading = false;
    if (isWanted) later();
  }

  let timer = null;
  function later() {
    isWanted = true;
    if (timer !== null || isLoading) return;
    timer = setTimeout(() => {
      timer = null;
      reload();
    }, Math.max(LEAST_MS - (Date.now() - at), 0));
  }

  const stream = new EventSource("api/stream");
  stream.addEventListener("changed", (event) => {
    tell(JSON.parse(event.data));
    later();
  });
  stream.addEventListener("error", () => {
    say("lost", "Connection lost, trying again");
    // A browser does not try again what was refused.
    if (stream.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 10000);
  });
  addEventListener("pagehide", () => stream.close());
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  setInterval(age, 1000);
  reload();
  return { again: reload };
}

function navigation() {
  replace(
    byId("pages"),
    PAGES.map(([href, text, path]) => {
      const here = location.pathname.endsWith(path) && (path !== "/" || location.pathname.endsWith("/"));
      return el("a", { href, "aria-current": here ? "page" : false, id: `to-${text.toLowerCase()}` }, text);
    }),
  );
}

function tell(told) {
  if (!told) return;
  const { reading, view } = told;
  newest = told.newest_window_end;
  chunkSize = view.chunk_size;
  problem(reading.problem, "reading");
  if (reading.problem) say("bad", "Not reading");
  else if (!reading.is_live) say("waiting", "Connecting to Kafka");
  else if (reading.share < 1) say("waiting", `Live, reading what was before: ${Math.floor(100 * reading.share)} %`);
  else say("live", "Live");
  age();
  byId("view").textContent =
    `Windows of ${view.chunk_size}, ${view.method}, a record a ${view.of}. Times are UTC.`;
  const link = byId("to-anomalies");
  replace(link, "Anomalies", told.anomalous ? el("span", { class: "count" }, String(told.anomalous)) : null);
}

function say(kind, text) {
  const word = byId("state-word");
  if (word.textContent !== text) word.textContent = text;
  word.className = `word ${kind}`;
}

function age() {
  const text = newest === null ? "" : `windows to ${day(newest) === day(now()) ? "" : `${day(newest)} `}${clock(newest)}, ${length(now() - newest)} ago`;
  byId("state-age").textContent = text;
}

const problems = { reading: "", asking: "" };

function problem(text, of = "asking") {
  problems[of] = text;
  const all = Object.values(problems).filter(Boolean).join(" ");
  const place = byId("problem");
  if (place.textContent !== all) place.textContent = all;
  place.hidden = !all;
}

// A note in place of a list: what is so, and what to do.
export function note(title, ...lines) {
  return el("section", { class: "empty" }, el("h2", {}, title), lines);
}

export const command = (text) => el("pre", { tabindex: "0" }, el("code", {}, text));

// Why there is nothing to show yet, told by the state of the pipeline.
export function nothingYet(told) {
  if (!told.reading.is_live || told.reading.share < 1) {
    return note("Reading …", el("p", {}, "The newest windows are read from Kafka first; this takes a few seconds."));
  }
  if (!told.has_jobs) {
    return note(
      "No poller has run yet",
      el("p", {}, "Nothing was read from a Prometheus under this topic prefix. Start a poller:"),
      command("ingestor run --url http://YOUR-PROMETHEUS:9090 --start 1h --bootstrap-servers …"),
      el("p", {}, "If it runs already: do poller and worker have the same --bootstrap-servers and --topic-prefix?"),
    );
  }
  return note(
    "The poller has run, but no window has been written yet",
    el("p", {}, `A window of ${told.view.chunk_size} closes when the poller is past its end and what it has settled, so wait for so long first. `,
      "If it takes longer, ", el("a", { href: "pipeline" }, "the pipeline's page"), " says where each job and partition stands."),
  );
}
