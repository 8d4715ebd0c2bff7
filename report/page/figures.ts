// Figures before tuning, after it and of each control, with their intervals: a line a figure, with a picture of
// where they lie.

import type { Data, Row, Run } from "./data";
import { h, s } from "./dom";
import { count, estimate, finite, number, percent, seconds } from "./format";

export function figuresPanel(data: Data, index: number): HTMLElement | null {
  const rows = data.rows.filter((row) => row.run === index);
  const run = data.runs[index];
  if (rows.length === 0) return unfinished(run);
  const names = [...new Set(rows.flatMap((row) => Object.keys(row.figures)))].sort(byTask);
  // The run says which figures matter, where it says so.
  const shown = run.summary?.shown ?? [];
  const first = shown.length > 0 ? shown.filter((name) => names.includes(name)) : names;
  const rest = names.filter((name) => !first.includes(name));
  const controls = rows.filter((row) => Object.keys(row.differences).length > 0 && row.seeds > 1);
  const seeds = Math.max(...rows.map((row) => row.seeds));
  const note =
    seeds > 1
      ? `Means over ${seeds} seeds, \u00b1 half their 95\u202f% interval (Student's t).`
      : "One seed: no interval. Differences may be chance.";
  return h(
    "div",
    {},
    h("p", { class: "note" }, note),
    table(first, rows),
    rest.length > 0 ? h("details", {}, h("summary", {}, `${rest.length} further figures`), table(rest, rows)) : null,
    controls.length > 0 ? differences(first, controls) : null,
    cost(run, rows),
  );
}

/** The task's own figures first, then those of side tasks and measuring metrics. */
function byTask(a: string, b: string): number {
  return Number(a.includes(".")) - Number(b.includes(".")) || a.localeCompare(b);
}

function colour(row: Row, index: number): string {
  return row.what === "before" ? "before" : row.what === "after" ? "after" : `control-${(index - 2) % 4}`;
}

function table(names: string[], rows: Row[]): HTMLElement {
  const head = [
    h("th", { scope: "col" }, "figure"),
    ...rows.map((row, index) => h("th", { scope: "col", class: `number key ${colour(row, index)}` }, row.what)),
    h("th", { scope: "col" }, "where they lie"),
  ];
  const line = (name: string): HTMLElement =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      ...rows.map((row) => h("td", { class: "number" }, estimate(row.figures[name], row.margins[name]))),
      h("td", { class: "strip" }, strip(name, rows)),
    );
  return h(
    "div",
    { class: "scroll" },
    h("table", { class: "figures" }, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...names.map(line))),
  );
}

const WIDTH = 220;

/** The models' figures on one axis, with their intervals. */
function strip(name: string, rows: Row[]): SVGSVGElement {
  const found = rows.flatMap((row, index) => {
    const value = finite(row.figures[name]);
    return value === null ? [] : [{ value, margin: finite(row.margins[name]) ?? 0, class: colour(row, index), row }];
  });
  const ends = found.flatMap(({ value, margin }) => [value - margin, value + margin]);
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  const x = (value: number): number => 8 + ((WIDTH - 16) * (value - low)) / (high - low || 1);
  const height = 8 + 7 * found.length;
  const picture = s("svg", { viewBox: `0 0 ${WIDTH} ${height}`, width: WIDTH, height, role: "img", "aria-label": `${name}, from ${number(low)} to ${number(high)}` });
  if (low < 0 && high > 0) picture.append(s("path", { class: "axis", d: `M${x(0).toFixed(1)} 0V${height}` }, s("title", {}, "0")));
  found.forEach(({ value, margin, class: name, row }, index) => {
    const y = 8 + 7 * index;
    picture.append(
      s("path", { class: `line ${name}`, d: `M${x(value - margin).toFixed(1)} ${y}H${x(value + margin).toFixed(1)}` }),
      s("circle", { class: `dot ${name}`, cx: x(value), cy: y, r: 3 }, s("title", {}, `${row.what} ${number(value)}`)),
    );
  });
  return picture;
}

/** What controls have more than the circuit with the same seed; one whose interval holds 0 shows no difference. */
function differences(names: string[], controls: Row[]): HTMLElement {
  const cell = (row: Row, name: string): HTMLElement => {
    const [mean, margin] = [finite(row.differences[name]), finite(row.difference_margins[name])];
    const sure = mean !== null && margin !== null && Math.abs(mean) > margin;
    return h("td", { class: `number ${sure ? "sure" : "unsure"}` }, estimate(row.differences[name], row.difference_margins[name]));
  };
  const line = (name: string): HTMLElement => h("tr", {}, h("th", { scope: "row" }, name), ...controls.map((row) => cell(row, name)));
  return h(
    "details",
    { open: true },
    h("summary", {}, "What controls have more than the circuit with the same seed"),
    h("p", { class: "note" }, "Bold where the 95\u202f% interval leaves out 0."),
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        {},
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "figure"), ...controls.map((row) => h("th", { scope: "col", class: "number" }, row.what)))),
        h("tbody", {}, ...names.map(line)),
      ),
    ),
  );
}

/** What was tuned, and what it took. */
function cost(run: Run, rows: Row[]): HTMLElement | null {
  const { summary } = run;
  if (!summary) return null;
  const shares = rows.filter((row) => row.what !== "before").map((row) => `${row.what} ${percent(row.tuned)}`);
  const text = [
    `Tuned, of ${count(summary.parameters)} parameters: ${shares.join(", ")}.`,
    `${count(summary.steps)} steps: discovery ${seconds(summary.discovery_seconds)}, tuning ${seconds(summary.tuning_seconds)}; the whole run ${seconds(summary.seconds)}.`,
  ];
  return h("p", { class: "note" }, text.join(" "));
}

function unfinished(run: Run): HTMLElement {
  const steps = (run.log.step ?? []).length;
  const text = run.error ? `This run failed: ${run.error}` : `This run isn't finished: ${count(steps)} steps so far.`;
  return h("p", { class: "empty" }, text);
}
