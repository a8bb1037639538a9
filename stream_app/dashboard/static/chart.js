// Lines over time: small ones for tables, and charts with axes that can be read out by mouse, finger and keyboard.

import { el, svg, unseen } from "./dom.js";
import { clock, day, exact, moment, number, scaleOf, written } from "./units.js";

const SPARK = { width: 120, height: 26, edge: 3 };
const CHART = { height: 168, left: 58, right: 12, top: 10, bottom: 22 };
// Of the ticks' text, in any font.
const WIDEST_DIGIT = 8;
const SECOND = 1000;
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000, 7776000, 31536000].map((s) => s * SECOND);

const isNumber = (value) => typeof value === "number";

export function sparkline(values, unit) {
  const numbers = values.filter(isNumber);
  if (!numbers.length) return el("span", { class: "spark" }, unseen("no values"));
  const low = Math.min(...numbers);
  const high = Math.max(...numbers);
  const { width, height, edge } = SPARK;
  const x = (at) => edge + (at * (width - 2 * edge)) / Math.max(values.length - 1, 1);
  const y = (value) => (high === low ? height / 2 : height - edge - ((value - low) / (high - low)) * (height - 2 * edge));
  const last = values.findLastIndex(isNumber);
  return el(
    "span", { class: "spark" },
    svg(
      "svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true", focusable: "false" },
      svg("path", { class: "line", d: path(values, x, y) }),
      svg("circle", { class: "dot", cx: x(last), cy: y(values[last]), r: 2 }),
    ),
    unseen(`lately from ${written(low, unit)} to ${written(high, unit)}`),
  );
}

// A line through neighbouring values: none is drawn over what is missing. A value alone is a dot.
function path(values, x, y) {
  let drawn = "";
  values.forEach((value, at) => {
    if (!isNumber(value)) return;
    const place = `${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    const isAlone = !isNumber(values[at - 1]) && !isNumber(values[at + 1]);
    drawn += isNumber(values[at - 1]) ? `L${place}` : `M${place}${isAlone ? "h0.01" : ""}`;
  });
  return drawn;
}

// Charts on one page that show the same moment.
export class Charts {
  #charts = new Set();
  #at = null;

  add(chart) {
    this.#charts.add(chart);
  }

  remove(chart) {
    this.#charts.delete(chart);
  }

  // Show what was at a window's start; null: nothing.
  point(start) {
    if (start === this.#at) return;
    this.#at = start;
    for (const chart of this.#charts) chart.mark(start);
  }

  get at() {
    return this.#at;
  }
}

export class Chart {
  #charts;
  #drawing;
  #readout;
  #table;
  #title;
  #unit;
  #told = null;
  #width = 0;
  #geometry = null;

  // `metric` names it; `charts` are those that are pointed at together.
  constructor(metric, unit, charts, title) {
    this.#charts = charts;
    this.#unit = unit;
    this.#title = metric;
    this.#readout = el("output", { class: "readout" });
    this.#drawing = el("div", {
      class: "drawing", tabindex: "0", role: "application", "aria-label": `Chart of ${metric}. Left and right arrow keys read it out, Escape ends that.`,
      "data-key": `chart ${metric}`,
    });
    this.#table = el("details", { class: "values" }, el("summary", { "data-key": `table ${metric}` }, "Values as a table"));
    this.element = el(
      "figure", { class: "chart" },
      el("figcaption", {}, el("h2", { title: metric }, title), this.#readout),
      this.#drawing,
      this.#table,
    );
    this.#table.addEventListener("toggle", () => this.#fillTable());
    this.#listen();
    new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (width !== this.#width) {
        this.#width = width;
        this.#draw();
      }
    }).observe(this.#drawing);
    charts.add(this);
  }

  remove() {
    this.#charts.remove(this);
    this.element.remove();
  }

  // `told`: {windows, values, latest, latestAt, anomalous: Set, partial: Set}
  show(told) {
    this.#told = told;
    this.#draw();
    this.#fillTable();
  }

  mark(start) {
    const at = start === null || !this.#told ? -1 : this.#told.windows.indexOf(start);
    this.#drawing.querySelector(".cursor")?.remove();
    if (at < 0) {
      this.#say(null);
      return;
    }
    this.#say(at);
    if (!this.#geometry) return;
    const { x, y, height } = this.#geometry;
    const value = this.#told.values[at];
    this.#drawing.firstElementChild?.append(
      svg(
        "g", { class: "cursor" },
        svg("line", { x1: x(at), x2: x(at), y1: CHART.top, y2: height }),
        isNumber(value) ? svg("circle", { cx: x(at), cy: y(value), r: 4 }) : null,
      ),
    );
  }

  #say(at) {
    const { windows, values, latest, latestAt, anomalous, partial } = this.#told;
    const isLatest = at === null;
    const start = isLatest ? latestAt : windows[at];
    const value = isLatest ? latest : values[at];
    const marks = [anomalous.has(start) ? "anomaly" : "", partial.has(start) ? "partial window" : ""].filter(Boolean);
    this.#readout.replaceChildren(
      el("span", { class: "when" }, `${clock(start)} UTC`),
      " ",
      el("strong", { title: exact(value), "data-value": exact(value) }, value === null ? "no value" : written(value, this.#unit)),
      marks.length ? el("span", { class: "mark" }, ` ${marks.join(", ")}`) : "",
    );
    // Only what somebody points at is read out, not each new window.
    this.#readout.setAttribute("aria-live", isLatest ? "off" : "polite");
  }

  #draw() {
    if (!this.#told || !this.#width) return;
    const { windows, values, anomalous, partial } = this.#told;
    const numbers = values.filter(isNumber);
    const width = this.#width;
    const height = CHART.height - CHART.bottom;
    const x = (at) => CHART.left + (at * (width - CHART.left - CHART.right)) / Math.max(windows.length - 1, 1);
    const { low, high, ticks, scale } = range(numbers, this.#unit);
    const y = (value) => height - ((value - low) / (high - low)) * (height - CHART.top);
    this.#geometry = numbers.length ? { x, y, height, width } : null;
    const step = x(1) - x(0);
    const drawing = svg(
      "svg", { viewBox: `0 0 ${width} ${CHART.height}`, width, height: CHART.height, "aria-hidden": "true", focusable: "false" },
      runs(windows, anomalous).map(([first, last]) => {
        const band = Math.max((last - first + 1) * step, 3);
        return svg("rect", { class: "anomalous", x: (x(first) + x(last) - band) / 2, width: band, y: CHART.top, height: height - CHART.top });
      }),
      ticks.map((tick) => [
        svg("line", { class: "grid", x1: CHART.left, x2: width - CHART.right, y1: y(tick), y2: y(tick) }),
        svg("text", { class: "tick", x: CHART.left - 8, y: y(tick) + 4, "text-anchor": "end" }, `${number(Number((tick / scale.divisor).toPrecision(12)))}${scale.unit ? ` ${scale.unit}` : ""}`),
      ]),
      timeTicks(windows, width - CHART.left - CHART.right).map(([at, text]) => [
        svg("line", { class: "stub", x1: x(at), x2: x(at), y1: height, y2: height + 4 }),
        svg("text", { class: "tick", y: CHART.height - 5, ...placed(x(at), text, width) }, text),
      ]),
      svg("line", { class: "axis", x1: CHART.left, x2: width - CHART.right, y1: height, y2: height }),
      numbers.length
        ? [
            svg("path", { class: "line", d: path(values, x, y) }),
            values.map((value, at) => (isNumber(value) && partial.has(windows[at]) ? svg("circle", { class: "partial", cx: x(at), cy: y(value), r: 3 }) : null)),
          ]
        : svg("text", { class: "tick", x: (CHART.left + width) / 2, y: height / 2, "text-anchor": "middle" }, "no numbers in this time"),
    );
    this.#drawing.replaceChildren(drawing);
    this.mark(this.#charts.at);
  }

  #listen() {
    const move = (event) => {
      if (!this.#geometry) return;
      const { left } = this.#drawing.getBoundingClientRect();
      const { windows } = this.#told;
      const inside = (event.clientX - left - CHART.left) / (this.#width - CHART.left - CHART.right);
      const at = Math.round(inside * (windows.length - 1));
      this.#charts.point(windows[Math.min(Math.max(at, 0), windows.length - 1)]);
    };
    this.#drawing.addEventListener("pointermove", move);
    this.#drawing.addEventListener("pointerdown", move);
    this.#drawing.addEventListener("pointerleave", () => this.#charts.point(null));
    this.#drawing.addEventListener("blur", () => this.#charts.point(null));
    this.#drawing.addEventListener("keydown", (event) => {
      if (!this.#told) return;
      const { windows } = this.#told;
      const last = windows.length - 1;
      const at = this.#charts.at === null ? -1 : windows.indexOf(this.#charts.at);
      const to = { ArrowLeft: at < 0 ? last : Math.max(at - 1, 0), ArrowRight: at < 0 ? last : Math.min(at + 1, last), Home: 0, End: last }[event.key];
      if (event.key === "Escape") this.#charts.point(null);
      else if (to !== undefined) {
        this.#charts.point(windows[to]);
        event.preventDefault();
      }
    });
  }

  #fillTable() {
    if (!this.#table.open || !this.#told) return;
    const { windows, values, anomalous, partial } = this.#told;
    const rows = windows.map((start, at) => [start, values[at]]).filter(([, value]) => value !== null).reverse();
    const table = el(
      "table", { class: "plain" },
      el("caption", { class: "unseen" }, `${this.#title}, the newest window first`),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "window's start (UTC)"), el("th", { scope: "col", class: "number" }, "value"), el("th", { scope: "col" }, ""))),
      el("tbody", {}, rows.map(([start, value]) =>
        el("tr", {}, el("th", { scope: "row" }, moment(start)), el("td", { class: "number" }, exact(value)),
          el("td", {}, [anomalous.has(start) ? "anomaly" : "", partial.has(start) ? "partial" : ""].filter(Boolean).join(", "))))),
    );
    this.#table.replaceChildren(this.#table.firstElementChild, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Values of ${this.#title}` }, table));
  }
}

// Windows next to one another that are all in a set, as [number of the first, number of the last]: bands that meet would show seams.
function runs(windows, chosen) {
  const found = [];
  windows.forEach((start, at) => {
    if (!chosen.has(start)) return;
    if (found.at(-1)?.[1] === at - 1) found.at(-1)[1] = at;
    else found.push([at, at]);
  });
  return found;
}

// Where a text below an axis stands: in the middle below its place, or where that would be cut at the right end.
function placed(x, text, width) {
  const isCut = x + (text.length * WIDEST_DIGIT) / 2 > width;
  return isCut ? { x: width, "text-anchor": "end" } : { x, "text-anchor": "middle" };
}

// From where to where the axis of values goes, and its ticks at round numbers of one unit.
function range(numbers, unit) {
  let low = numbers.length ? Math.min(...numbers) : 0;
  let high = numbers.length ? Math.max(...numbers) : 1;
  // Zero is shown where it is near.
  if (low > 0 && low <= 0.5 * high) low = 0;
  if (high < 0 && high >= 0.5 * low) high = 0;
  if (high === low) {
    const more = Math.abs(high) * 0.1 || 1;
    [low, high] = low > 0 ? [low - more, high + more] : low < 0 ? [low - more, high + more] : [0, 1];
  }
  const scale = scaleOf(unit, Math.max(Math.abs(low), Math.abs(high)));
  const rough = (high - low) / scale.divisor / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough) * scale.divisor;
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  const ticks = Array.from({ length: last - first + 1 }, (_, at) => (first + at) * step);
  return { low: ticks[0], high: ticks.at(-1), ticks, scale };
}

// Windows at round times, as [number of the window, text], as many as there is room for.
function timeTicks(windows, width) {
  if (windows.length < 2) return windows.map((start, at) => [at, clock(start)]);
  const span = windows.at(-1) - windows[0];
  const most = Math.max(Math.floor(width / 78), 1);
  const step = STEPS.find((candidate) => span / candidate <= most) ?? span;
  const spansDays = span >= 86400 * SECOND;
  const ticks = [];
  windows.forEach((start, at) => {
    if (Math.floor(start / step) !== Math.floor((windows[at - 1] ?? start - 1) / step)) ticks.push([at, start]);
  });
  return ticks.map(([at, start], number) => [
    at,
    step >= 86400 * SECOND ? day(start).slice(5) : spansDays && (number === 0 || start % (86400 * SECOND) === 0) ? `${day(start).slice(5)} ${clock(start)}` : clock(start),
  ]);
}
