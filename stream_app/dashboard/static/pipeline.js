// The pipeline's own state: where jobs stand, who has which partition, what could not be read.

import { breakable, byId, el, replace } from "./dom.js";
import { ask, command, follow } from "./live.js";
import { length, moment, number, plural } from "./units.js";

const LOOK_MS = 5000;

async function load() {
  const told = await ask("api/pipeline");
  replace(byId("list"), [tiles(told), jobs(told), workers(told), letters(told), oddities(told)]);
  return told;
}

function tiles(told) {
  const { worker } = told;
  const running = told.jobs.filter((job) => !job.ended);
  const lag = running.length ? Math.max(...running.map((job) => job.lag_s)) : null;
  return el(
    "dl", { class: "tiles" },
    tile("This worker", worker.not_healthy ? "not healthy" : worker.not_ready ? "not ready" : "ready", worker.not_healthy ?? worker.not_ready ?? plural(worker.partitions.length, "partition"), worker.not_healthy ? "bad" : worker.not_ready ? "warn" : "good"),
    tile("Poller's lag", lag === null ? "–" : length(1000 * lag), lag === null ? "no job is running" : `behind now, ${plural(running.length, "running job")}`),
    tile("Records", told.records_per_s === null ? "–" : `${number(told.records_per_s)}/s`, "of all workers, of late"),
    tile("Open windows", count(worker.open_windows), `${count(worker.open_cells)} values in them, this worker`),
    tile("Dead letters", told.dead_letters.length ? count(told.dead_letters.length) : "none", told.dead_letters.length ? "shown below" : "all messages could be read", told.dead_letters.length ? "warn" : "good"),
  );
}

function tile(name, value, about, kind = "") {
  return el("div", { class: `tile ${kind}` }, el("dt", {}, name), el("dd", {}, el("strong", {}, value), el("span", { class: "about" }, about)));
}

const count = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));

function jobs(told) {
  if (!told.jobs.length) {
    const content = told.reading.is_live
      ? [el("p", {}, "No poller has run yet under this topic prefix. Start one:"),
         command(`ingestor run --url http://YOUR-PROMETHEUS:9090 --start 1h --topic-prefix ${told.topics.prefix} --bootstrap-servers …`)]
      : [el("p", {}, "Reading …")];
    return el("section", {}, el("h2", {}, "Poller's jobs"), content);
  }
  return el(
    "section", { "aria-labelledby": "jobs" },
    el("h2", { id: "jobs" }, "Poller's jobs"),
    scroll("Poller's jobs", table(
      ["Job", "State", "Position (UTC)", ["Lag"], ["Samples"], ["Samples/s"], "Written"],
      told.jobs.map((job) => [
        el("th", { scope: "row" }, breakable(job.job), job.revision ? el("span", { class: "about" }, ` revision ${job.revision}`) : null),
        jobState(job, told.now),
        el("span", { "data-position": job.position }, moment(job.position)),
        [job.ended ? "" : length(1000 * job.lag_s)],
        [count(job.samples)],
        [job.ended ? "" : number(job.samples_per_s)],
        job.updated ? `${length(told.now - job.updated)} ago` : "",
      ]),
    )),
    told.jobs_total > told.jobs.length ? el("p", { class: "about" }, `${told.jobs_total - told.jobs.length} more are left out`) : null,
    told.jobs.filter((job) => job.last_error || job.incomplete.length).map((job) =>
      el("div", { class: "detail" }, el("strong", {}, job.job), ": ",
        job.last_error ? `last error ${length(told.now - job.last_error_at)} ago: ${job.last_error}. ` : "",
        job.incomplete.length ? `Prometheus refuses samples of ${job.incomplete.join(", ")}` : "")),
  );
}

function jobState(job, now) {
  if (job.ended) return el("span", { class: "badge quiet" }, "ended");
  // A live job writes its position every few seconds.
  const isStill = job.updated && now - job.updated > 5 * 60000;
  return isStill ? el("span", { class: "badge warn" }, "stands still") : el("span", { class: "badge good" }, "running");
}

function workers(told) {
  const { group, worker } = told;
  const owners = new Map(group.workers.flatMap((one) => one.partitions.map((partition) => [partition, one])));
  const partitions = [...new Set([...owners.keys(), ...worker.partitions, ...Object.keys(told.newest_window_ends).map(Number)])].sort((a, b) => a - b);
  const idle = group.workers.filter((one) => !one.partitions.length);
  return el(
    "section", { "aria-labelledby": "partitions" },
    el("h2", { id: "partitions" }, "Partitions and workers"),
    el("p", { class: "about" }, `Group ${group.id}: ${plural(group.workers.length, "worker")}${idle.length ? `, ${idle.length} standing by` : ""}. ${group.problem}`),
    partitions.length
      ? scroll("Partitions and workers", table(
          ["Partition", "Worker", "Newest window's end (UTC)", ["Messages to read"]],
          partitions.map((partition) => {
            const owner = owners.get(partition);
            const end = told.newest_window_ends[partition];
            const isOwn = worker.partitions.includes(partition);
            return [
              el("th", { scope: "row", class: "short" }, String(partition)),
              owner ? el("span", {}, workerName(owner), owner.member === worker.member ? el("span", { class: "about" }, " this worker") : null) : el("span", { class: "badge warn" }, "nobody"),
              end ? moment(end) : el("span", { class: "about" }, "none of late"),
              [isOwn ? count(worker.lag[partition]) : el("span", { class: "about", title: "its own dashboard tells" }, "–")],
            ];
          }),
        ))
      : el("p", {}, "No worker has a partition at the moment."),
  );
}

function workerName(one) {
  return `${one.slot ?? one.member.split("-").slice(-1)[0].slice(0, 8)} on ${one.host}`;
}

function letters(told) {
  const list = told.dead_letters;
  return el(
    "section", { "aria-labelledby": "letters" },
    el("h2", { id: "letters" }, "Dead letters"),
    list.length
      ? scroll("Dead letters", table(
          ["Set aside (UTC)", "Why", "Where it stood", "Key", ["Bytes"]],
          list.map((letter) => [
            el("th", { scope: "row", class: "tight short" }, moment(letter.time_ms)),
            el("span", { class: "why" }, letter.error),
            el("span", {}, breakable(`${letter.topic} ${letter.partition}${letter.offset && `@${letter.offset}`}`)),
            el("span", { class: "why" }, letter.key),
            [count(letter.size_bytes)],
          ]),
        ))
      : el("p", { class: "about" }, `None of late: every message on the chunk topic could be read.`),
  );
}

function oddities(told) {
  const lines = [
    told.unreadable ? `${plural(told.unreadable, "message")} on the topics that are shown here could not be read.` : null,
    told.other_views.length ? `${told.topics.records} has records of other views too, which are left out here: ${told.other_views.join(", ")}.` : null,
    `${plural(told.windows_kept, "window")} of each pod are kept at most.`,
  ].filter(Boolean);
  return el("section", { class: "about" }, lines.map((line) => el("p", {}, line)));
}

// A cell that is a list is right-aligned.
function table(heads, rows) {
  const head = (one) => (Array.isArray(one) ? el("th", { scope: "col", class: "number" }, one[0]) : el("th", { scope: "col" }, one));
  const cell = (one) => (Array.isArray(one) ? el("td", { class: "number" }, one[0]) : one?.tagName === "TH" ? one : el("td", {}, one));
  return el("table", { class: "plain" }, el("thead", {}, el("tr", {}, heads.map(head))), el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell)))));
}

const scroll = (label, content) => el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label, "data-key": label }, content);

const { again } = follow(load);
// Positions and lag grow without an event.
setInterval(() => document.hidden || again(), LOOK_MS);
