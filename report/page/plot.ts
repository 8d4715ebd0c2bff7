// Plots of lines: axes, values under the pointer or the arrow keys.

import { h, s } from "./dom";
import { number, short } from "./format";

export interface Line {
  label: string;
  /** Sorted by x. */
  points: [number, number][];
  /** The page's style gives it a colour. */
  class: string;
  dots?: boolean;
  /** Drawn, but not named under the pointer. */
  quiet?: boolean;
}

export interface Options {
  title: string;
  lines: Line[];
  /** What x is, for the text under the pointer. */
  x: (value: number) => string;
  /** The text at a mark of the x-axis. */
  tick?: (value: number) => string;
  logX?: boolean;
  logY?: boolean;
  /** Further marks of the x-axis. */
  marks?: number[];
  /** Lines across, with their names. */
  rules?: { at: number; name: string }[];
  /** Where the y-axis must reach. */
  includes?: number[];
  pick?: (x: number) => void;
  width?: number;
  height?: number;
}

export interface Plot {
  element: HTMLElement;
  /** Marks a place on the x-axis. */
  mark(x: number | null): void;
}

const LEFT = 52;
const RIGHT = 16;
const TOP = 8;
const BOTTOM = 24;

interface Axis {
  low: number;
  high: number;
  log: boolean;
  ticks: number[];
}

/** An axis over values; on a logarithmic one only what is above 0 has a place. */
function axis(values: number[], log: boolean, count: number): Axis {
  const usable = values.filter((value) => Number.isFinite(value) && (!log || value > 0));
  let low = usable.reduce((a, b) => Math.min(a, b), Infinity);
  let high = usable.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!Number.isFinite(low)) [low, high] = log ? [0.1, 1] : [0, 1];
  if (log) return logAxis(low, high);
  if (low === high) {
    const aside = low === 0 ? 0.5 : Math.abs(low) * 0.1;
    [low, high] = [low - aside, high + aside];
  }
  const rough = (high - low) / count;
  const magnitude = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * magnitude).find((step) => step >= rough) ?? rough;
  const [first, last] = [Math.ceil(low / step - 1e-9), Math.floor(high / step + 1e-9)];
  const ticks = Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
  if (ticks.length < 3 && count < 16) return axis(values, log, 2 * count);
  // A little room, but none beyond a mark that an end lies on.
  const room = 0.04 * (high - low);
  return { low: ticks[0] === low ? low : low - room, high: ticks[ticks.length - 1] === high ? high : high + room, log, ticks };
}

function logAxis(low: number, high: number): Axis {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const every = Math.max(1, Math.ceil((last - first) / 5));
  let ticks: number[] = [];
  for (let power = first; power <= last; power += every) ticks.push(10 ** power);
  if (last - first <= 1) ticks = [1, 2, 5, 10].map((factor) => factor * 10 ** first);
  ticks = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  if (ticks.length < 2) ticks = [low, high];
  return low === high ? { low: low / 2, high: high * 2, log: true, ticks: [low] } : { low, high, log: true, ticks };
}

function share({ low, high, log }: Axis, value: number): number {
  return log
    ? (Math.log(Math.max(value, low)) - Math.log(low)) / (Math.log(high) - Math.log(low))
    : (value - low) / (high - low);
}

export function plot(options: Options): Plot {
  const { title, logX = false, logY = false, width = 340, height = 170 } = options;
  const lines = options.lines.filter((line) => line.points.length > 0);
  const all = lines.flatMap((line) => line.points);
  const xs = [...new Set(all.map((point) => point[0]))].sort((a, b) => a - b);
  const xAxis = axis(xs, logX, 5);
  // Steps end where the data do.
  if (!logX && xs.length > 1) [xAxis.low, xAxis.high] = [xs[0], xs[xs.length - 1]];
  // There is no half a step and no half a layer.
  if (!logX && xs.every(Number.isInteger)) xAxis.ticks = xAxis.ticks.filter(Number.isInteger);
  const yAxis = axis([...all.map((point) => point[1]), ...(options.includes ?? [])], logY, 4);
  const x = (value: number): number => LEFT + (width - LEFT - RIGHT) * share(xAxis, value);
  const y = (value: number): number => height - BOTTOM - (height - BOTTOM - TOP) * share(yAxis, value);

  const picture = s("svg", {
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    tabindex: 0,
    "aria-label": `${title}: ${lines.map((line) => line.label).join(", ")}`,
  });
  for (const value of yAxis.ticks) {
    picture.append(
      s("path", { class: "grid", d: `M${LEFT} ${y(value).toFixed(1)}H${width - RIGHT}` }),
      s("text", { x: LEFT - 6, y: y(value) + 3.5, "text-anchor": "end" }, short(value)),
    );
  }
  for (const value of [...xAxis.ticks, ...(options.marks ?? [])].filter((tick) => tick >= xAxis.low && tick <= xAxis.high)) {
    picture.append(
      s("path", { class: "axis", d: `M${x(value).toFixed(1)} ${height - BOTTOM}v4` }),
      s("text", { x: x(value), y: height - BOTTOM + 16, "text-anchor": "middle" }, (options.tick ?? short)(value)),
    );
  }
  picture.append(s("path", { class: "axis", d: `M${LEFT} ${TOP}V${height - BOTTOM}H${width - RIGHT}` }));
  for (const { at, name } of options.rules ?? []) {
    picture.append(
      s("path", { class: "rule", d: `M${LEFT} ${y(at).toFixed(1)}H${width - RIGHT}` }),
      s("text", { class: "rule-name", x: width - RIGHT - 2, y: y(at) < TOP + 10 ? y(at) + 10 : y(at) - 3, "text-anchor": "end" }, name),
    );
  }
  const marked = s("path", { class: "here" });
  picture.append(marked);
  for (const line of lines) {
    const usable = line.points.filter((point) => !logY || point[1] > 0);
    const places = usable.map(([px, py]) => `${x(px).toFixed(1)} ${y(py).toFixed(1)}`);
    if (places.length > 1) picture.append(s("path", { class: `line ${line.class}`, d: `M${places.join("L")}` }));
    if (line.dots || places.length === 1) {
      usable.forEach(([px, py]) => picture.append(s("circle", { class: `dot ${line.class}`, cx: x(px), cy: y(py), r: 3 })));
    }
  }
  const cross = s("path", { class: "cross" });
  const readout = h("p", { class: "readout", "aria-live": "polite" });
  picture.append(cross);
  let at = xs.length - 1;

  const show = (index: number): void => {
    if (xs.length === 0) return;
    at = Math.max(0, Math.min(xs.length - 1, index));
    const value = xs[at];
    cross.setAttribute("d", `M${x(value).toFixed(1)} ${TOP}V${height - BOTTOM}`);
    const own = lines
      .filter((line) => !line.quiet)
      .map((line): [Line, number | undefined] => [line, line.points.find((point) => point[0] === value)?.[1]])
      .filter(([, found]) => found !== undefined);
    readout.replaceChildren(
      h("span", {}, options.x(value)),
      ...own.map(([line, found]) => h("span", { class: `value ${line.class}` }, `${line.label}\u00a0${number(found)}`)),
    );
  };
  const hide = (): void => {
    cross.setAttribute("d", "");
    readout.replaceChildren();
  };
  const nearest = (event: PointerEvent | MouseEvent): number => {
    const box = picture.getBoundingClientRect();
    const along = ((event.clientX - box.left) / box.width) * width;
    return xs.reduce((best, value, index) => (Math.abs(x(value) - along) < Math.abs(x(xs[best]) - along) ? index : best), 0);
  };
  picture.addEventListener("pointermove", (event) => show(nearest(event)));
  picture.addEventListener("pointerleave", hide);
  picture.addEventListener("focus", () => show(at));
  picture.addEventListener("blur", hide);
  picture.addEventListener("keydown", (event) => {
    const moves: Record<string, number> = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: xs.length - 1 };
    if (event.key in moves) {
      event.preventDefault();
      show(moves[event.key]);
    } else if (event.key === "Enter") options.pick?.(xs[at]);
  });
  if (options.pick) {
    picture.classList.add("picks");
    picture.addEventListener("click", (event) => options.pick?.(xs[nearest(event)]));
  }
  return {
    element: h("figure", { class: "plot" }, h("figcaption", {}, title), picture, readout),
    mark(value) {
      const shown = value !== null && value >= xAxis.low && value <= xAxis.high;
      marked.setAttribute("d", shown ? `M${x(value).toFixed(1)} ${TOP}V${height - BOTTOM}` : "");
    },
  };
}

/** What the lines' colours stand for. */
export function legend(entries: { label: string; class: string }[]): HTMLElement {
  return h(
    "ul",
    { class: "legend" },
    ...entries.map((entry) => {
      const sample = s("svg", { viewBox: "0 0 24 8", width: 24, height: 8, "aria-hidden": "true" });
      sample.append(s("path", { class: `line ${entry.class}`, d: "M0 4H24" }));
      return h("li", {}, sample, entry.label);
    }),
  );
}
