// Several runs side by side: a table of their figures that can be sorted, and their curves, small, on one scale.

import type { Data, Row } from "./data";
import { choice, h, select } from "./dom";
import { estimate, finite, percent } from "./format";
import { small } from "./curves";
import type { Store } from "./state";
import { table } from "./table";

export function sweepPanel(data: Data, store: Store): HTMLElement | null {
  if (data.runs.length < 2) return null;
  const names = [...new Set(data.rows.flatMap((row) => Object.keys(row.figures)))].sort(
    (a, b) => Number(a.includes(".")) - Number(b.includes(".")) || a.localeCompare(b),
  );
  const all = table<Row>({
    columns: [
      {
        name: "run",
        value: (row) => row.name,
        cell: (row) => data.means.includes(row) ? row.name : h("button", { type: "button", class: "link", click: () => store.set({ run: row.run, stop: 0, node: "", top: 0 }) }, row.name),
      },
      { name: "model", value: (row) => row.what },
      { name: "selector", value: (row) => row.selector },
      { name: "tuned", value: (row) => row.tuned, cell: (row) => percent(row.tuned), number: true },
      { name: "seeds", value: (row) => row.seeds, number: true },
      ...names.map((name) => ({
        name,
        value: (row: Row) => finite(row.figures[name]) ?? -Infinity,
        cell: (row: Row) => estimate(row.figures[name], row.margins[name]),
        number: true,
      })),
    ],
    text: (row) => `${row.name} ${row.what} ${row.selector} ${row.task}`,
    chosen: (row) => row.run === store.state.run && !data.means.includes(row),
    sort: [0, false],
    search: "search runs: a name, after, random",
  });
  all.set([...data.means, ...data.rows]);
  const failed = data.runs.filter((run) => run.error !== null);
  const element = h(
    "div",
    {},
    all.element,
    ...failed.map((run) => h("p", { class: "empty" }, `${run.name} failed: ${run.error}`)),
    multiples(data, store),
  );
  store.listen((_, changed) => {
    if (element.isConnected && changed.has("run")) all.refresh();
  });
  return element;
}

/** Every run's curve of one column. */
function multiples(data: Data, store: Store): HTMLElement {
  const columns = ["metric", "loss", "tuned_share", "overlap", "gradient_norm"].filter((name) =>
    data.runs.some((run) => (run.log[name] ?? []).length > 1),
  );
  let chosen = columns[0] ?? "loss";
  let log = false;
  const plots = h("div", { class: "plots small" });
  const show = (): void => {
    const values = data.runs.flatMap((run) => run.log[chosen] ?? []).filter((value): value is number => value !== null && (!log || value > 0));
    const range: [number, number] = [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)];
    plots.replaceChildren(
      ...data.runs.flatMap((run, index) =>
        (run.log[chosen] ?? []).length > 1
          ? [h("div", { click: () => store.set({ run: index, stop: 0, node: "", top: 0 }) }, small(run, chosen, run.name, range, log))]
          : [],
      ),
    );
  };
  show();
  const set = (name: string): void => {
    chosen = name;
    show();
  };
  return h(
    "div",
    {},
    h(
      "div",
      { class: "controls line" },
      select("curves of", columns.map((name): [string, string] => [name, name]), chosen, set),
      choice("small-log", "axis", [["linear", "linear"], ["log", "logarithmic"]], "linear", (axis) => {
        log = axis === "log";
        show();
      }),
      h("span", { class: "note" }, "all on one scale"),
    ),
    plots,
  );
}
