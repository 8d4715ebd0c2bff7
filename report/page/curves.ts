// The curves of tuning: what each step did, the circuit's run beside its controls and other seeds, and held-out
// figures on the way.

import { setting, type Columns, type Evaluation, type Run } from "./data";
import { choice, h } from "./dom";
import { jaccard, stopOf } from "./edges";
import { finite } from "./format";
import { legend, plot, type Line, type Plot } from "./plot";
import type { State, Store } from "./state";

type Points = [number, number][];

/** A log's column over its steps. */
function column(log: Columns, name: string): Points {
  const steps = log.step ?? [];
  const values = log[name] ?? [];
  return steps.flatMap((step, index) => {
    const value = values[index] ?? null;
    return step !== null && value !== null ? [[step, value] as [number, number]] : [];
  });
}

/** A held-out figure over steps: before tuning, on the way, after it. */
function heldOut(run: Run | null, evaluations: Evaluation[], name: string): Points {
  const points: Points = [];
  const add = (step: number, value: unknown): void => {
    const number = finite(value as number);
    if (number !== null) points.push([step, number]);
  };
  add(0, run?.summary?.before[name]);
  evaluations.forEach(({ step, figures }) => add(step + 1, figures[name]));
  const steps = run?.summary?.steps ?? 0;
  if (evaluations.every(({ step }) => step + 1 !== steps)) add(steps, run?.summary?.after[name]);
  return points;
}

/** What the run itself tunes: the circuit, or what its selector names where it needs none. */
function tuned(run: Run): string {
  return run.circuits.stops.length > 0 ? "circuit" : setting(run, "selector", "name");
}

/** What is tuned beside the circuit, each kind a class of lines of its own. */
export function kinds(run: Run): { label: string; class: string }[] {
  const names = [...new Set(run.others.map((other) => other.kind))].sort();
  // As the figures have them.
  const listed = run.summary?.controls?.kinds.map((control) => control.kind) ?? [];
  const controls = [...listed, ...names.filter((name) => !listed.includes(name) && name !== "circuit")];
  const own = [{ label: tuned(run), class: "after" }];
  if (names.includes("circuit")) own.push({ label: "circuit, other seeds", class: "seed" });
  return [...own, ...controls.map((label, index) => ({ label, class: `control-${index % 4}` }))];
}

/** The lines of a column: the circuit's, and those of everything that was tuned beside it. */
function linesOf(run: Run, name: string): Line[] {
  const controls = kinds(run);
  const of = (kind: string): string => controls.find((entry) => entry.label === kind)?.class ?? "seed";
  const others = run.others.map((other): Line => {
    const own = other.kind === "circuit";
    return {
      label: `${other.kind} ${other.seed}`,
      points: column(other.log, name),
      class: `${own ? "seed" : of(other.kind)} thin`,
      quiet: run.others.length > 3,
    };
  });
  return [...others, { label: tuned(run), points: column(run.log, name), class: "after" }];
}

/** Jaccard overlap of each rediscovered circuit with the first of them, and with the one before. */
function overlaps(run: Run): { first: Points; before: Points } {
  const found = run.circuits.stops.filter((stop) => stop.step !== null);
  const of = (other: (index: number) => number): Points =>
    found.map((stop, index) => [stop.step as number, jaccard(stop.edges, found[other(index)].edges)]);
  return { first: of(() => 0), before: of((index) => Math.max(0, index - 1)) };
}

export function curvesPanel(run: Run, store: Store): HTMLElement | null {
  if ((run.log.step ?? []).length === 0) return null;
  const element = h("div", {});
  const plots = h("div", { class: "plots" });
  const more = h("div", { class: "plots" });
  const rest = h("details", {}, h("summary", {}, "Side tasks, measuring metrics, gradient norm, learning rate"), more);
  let drawn: Plot[] = [];
  const build = (): void => {
    const [first, others] = [main(run, store), further(run, store)];
    drawn = [...first, ...others];
    plots.replaceChildren(...first.map((plot) => plot.element));
    more.replaceChildren(...others.map((plot) => plot.element));
    mark(store.state);
  };
  const mark = (state: State): void => {
    const step = run.circuits.stops[stopOf(run, state.stop)]?.step ?? null;
    drawn.forEach((plot) => plot.mark(step));
  };
  const hint = run.circuits.stops.length > 1 ? "The upright line is the circuit below; click a curve to choose another." : "";
  element.append(
    h(
      "div",
      { class: "controls line" },
      choice("log", "axis", [["linear", "linear"], ["log", "logarithmic"]], store.state.log ? "log" : "linear", (axis) => store.set({ log: axis === "log" })),
      legend(kinds(run)),
      h("span", { class: "note" }, hint),
    ),
    plots,
    rest,
  );
  build();
  store.listen((state, changed) => {
    if (!element.isConnected) return;
    if (changed.has("log")) build();
    else if (changed.has("stop")) mark(state);
  });
  return element;
}

/** A plot over steps; none where there is nothing to draw a line through. */
function overSteps(run: Run, store: Store, title: string, lines: Line[], more: { logY?: boolean; includes?: number[] } = {}): Plot[] {
  const { stops } = run.circuits;
  const pick = (step: number): void => {
    let best = -1;
    stops.forEach((stop, index) => {
      if (stop.step !== null && stop.step <= step) best = index;
    });
    if (best >= 0) store.set({ stop: best });
  };
  const drawn = lines.some((line) => line.points.length > 1);
  return drawn ? [plot({ title, lines, logY: store.state.log, x: (step) => `step ${step}`, pick, ...more })] : [];
}

/** The names of held-out figures: the task's own, and those of side tasks and measuring metrics. */
function heldNames(run: Run): { own: string[]; others: string[] } {
  const names = run.evaluations.length > 0 ? Object.keys(run.summary?.before ?? run.evaluations[0].figures) : [];
  return { own: names.filter((name) => !name.includes(".")), others: names.filter((name) => name.includes(".")) };
}

/** A held-out figure of the circuit's run and of what was tuned beside it. */
function heldLines(run: Run, name: string): Line[] {
  const controls = kinds(run);
  const seeds = run.summary?.controls?.seeds ?? [];
  const beside = run.others
    .filter((other) => other.evaluations.length > 0)
    .map((other): Line => {
      const before = run.summary?.controls?.before.repeats[seeds.indexOf(other.seed)]?.[name];
      const start = finite(before);
      const points = heldOut(null, other.evaluations, name);
      return {
        label: `${other.kind} ${other.seed}`,
        points: start === null ? points : [[0, start], ...points],
        class: `${other.kind === "circuit" ? "seed" : (controls.find((of) => of.label === other.kind)?.class ?? "seed")} thin`,
        quiet: run.others.length > 3,
      };
    });
  return [...beside, { label: tuned(run), points: heldOut(run, run.evaluations, name), class: "after", dots: true }];
}

function main(run: Run, store: Store): Plot[] {
  const overlap = overlaps(run);
  const dots = overlap.first.length < 40;
  const circuits: Line[] = [
    { label: "with the first", points: overlap.first, class: "after", dots },
    { label: "with the one before", points: overlap.before, class: "before", dots },
  ];
  return [
    ...overSteps(run, store, "loss, on each step's examples", linesOf(run, "loss")),
    ...overSteps(run, store, `${setting(run, "metric", "name") || "metric"}, on each step's examples`, linesOf(run, "metric")),
    ...overSteps(run, store, "overlap with the first circuit (blue), the one before (grey)", circuits, { logY: false, includes: [0, 1] }),
    ...heldNames(run).own.flatMap((name) => overSteps(run, store, `${name}, held out`, heldLines(run, name))),
    ...overSteps(run, store, "share of parameters tuned", linesOf(run, "tuned_share"), { includes: [0] }),
  ];
}

function further(run: Run, store: Store): Plot[] {
  const rate: Line[] = [{ label: "learning rate", points: column(run.log, "learning_rate"), class: "after" }];
  return [
    ...heldNames(run).others.flatMap((name) => overSteps(run, store, `${name}, held out`, heldLines(run, name))),
    ...overSteps(run, store, "gradient norm", linesOf(run, "gradient_norm"), { includes: [0] }),
    ...overSteps(run, store, "learning rate", rate, { includes: [0] }),
  ];
}

/** A run's curve of one column, small. */
export function small(run: Run, name: string, title: string, range: [number, number], logY: boolean): HTMLElement {
  return plot({
    title,
    lines: linesOf(run, name),
    logY,
    x: (step) => `step ${step}`,
    includes: range,
    width: 260,
    height: 140,
  }).element;
}
