// Numbers as people read them: a unit guessed from the metric's name, and four digits. The exact value is in the title.

const COUNTER = /_(total|count|sum|bucket)$/;
const BINARY = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const DECIMAL = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const SHORT = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]];

// What a metric's values are: {kind: "bytes" | "seconds" | "count", per: "" | "/s"}.
export function unitOf(metric, method) {
  const name = metric.replace(/\{.*$/s, "");
  const isRate = /-of-rate$/.test(method) || (/counters-rate/.test(method) && COUNTER.test(name));
  const per = isRate ? "/s" : "";
  if (method === "count") return { kind: "count", per: "" };
  if (/(^|_)bytes(_|$)/.test(name)) return { kind: "bytes", per };
  if (/(^|_)seconds(_|$)/.test(name) && !/_(count|bucket)$/.test(name)) return { kind: "seconds", per };
  return { kind: "count", per };
}

// The scale that numbers up to `largest` are written in: {divisor, unit}.
export function scaleOf(unit, largest) {
  const size = Math.abs(largest);
  if (unit.kind === "bytes") {
    const at = size >= 1 ? Math.min(Math.floor(Math.log2(size) / 10), BINARY.length - 1) : 0;
    return { divisor: 1024 ** at, unit: BINARY[at] + unit.per };
  }
  if (unit.kind === "seconds") {
    const [divisor, name] = size === 0 ? SHORT[0] : SHORT.find(([from]) => size >= from) ?? SHORT.at(-1);
    return { divisor, unit: name + unit.per };
  }
  const [divisor, prefix] = DECIMAL.find(([from]) => size >= from && size >= 1e4) ?? [1, ""];
  return { divisor, unit: prefix + unit.per };
}

// Four digits; `isFixed`: zeros at the end too, so that numbers below one another line up.
export function number(value, isFixed = false) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e15)) return value.toExponential(3);
  const decimals = size === 0 ? 0 : Math.min(Math.max(0, 3 - Math.floor(Math.log10(size))), 8);
  const least = isFixed && !Number.isInteger(value) ? decimals : 0;
  return value.toLocaleString("en", { minimumFractionDigits: least, maximumFractionDigits: decimals });
}

// {text, unit} of a value as the API has it: a number, "NaN", "+Inf", "-Inf", or null where there is none.
export function formatted(value, unit, isFixed = false) {
  if (value === null || value === undefined) return { text: "–", unit: "" };
  if (typeof value === "string") return { text: value, unit: "" };
  const scale = scaleOf(unit, value);
  return { text: number(value / scale.divisor, isFixed), unit: scale.unit };
}

export function written(value, unit) {
  const { text, unit: name } = formatted(value, unit);
  return name ? `${text} ${name}` : text;
}

export const exact = (value) => (value === null || value === undefined ? "no value" : String(value));

const two = (value) => String(value).padStart(2, "0");

export function clock(ms, withSeconds = ms % 60000 !== 0) {
  const time = new Date(ms);
  const minutes = `${two(time.getUTCHours())}:${two(time.getUTCMinutes())}`;
  return withSeconds ? `${minutes}:${two(time.getUTCSeconds())}` : minutes;
}

// Whether windows like this one are told with seconds: those below one another alike.
export const hasSeconds = (start, end) => (end - start) % 60000 !== 0;

export const day = (ms) => new Date(ms).toISOString().slice(0, 10);

export const moment = (ms) => `${day(ms)} ${clock(ms, true)}`;

export function length(ms) {
  const seconds = Math.max(Math.round(ms / 1000), 0);
  if (seconds < 120) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${two(minutes % 60)} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
