// The curves of tuning: what each step did, the circuit's run beside its controls and other seeds, and held-out
// figures on the way.

import type { Columns, Evaluation, Run } from "./data";
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
function heldOut(run: Run, evaluations: Evaluation[], name: string): Points {
  const points: Points = [];
  const add = (step: number, value: unknown): void => {
    const number = finite(value as number);
    if (number !== null) points.push([step, number]);
  };
  add(0, run.summary?.before[name]);
  evaluations.forEach(({ step, figures }) => add(step + 1, figures[name]));
  const steps = run.summary?.steps ?? 0;
  if (evaluations.every(({ step }) => step + 1 !== steps)) add(steps, run.summary?.after[name]);
  return points;
}

/** What is tuned beside the circuit, each kind a class of lines of its own. */
export function kinds(run: Run): { label: string; class: string }[] {
  const names = [...new Set(run.others.map((other) => other.kind))].sort();
  const controls = names.filter((name) => name !== "circuit");
  const own = [{ label: "circuit", class: "after" }];
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
  return [...others, { label: "circuit", points: column(run.log, name), class: "after" }];
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
  let drawn: Plot[] = [];
  const build = (): void => {
    drawn = all(run, store);
    plots.replaceChildren(...drawn.map((plot) => plot.element));
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
  );
  build();
  store.listen((state, changed) => {
    if (!element.isConnected) return;
    if (changed.has("log")) build();
    else if (changed.has("stop")) mark(state);
  });
  return element;
}

function all(run: Run, store: Store): Plot[] {
  const logY = store.state.log;
  const pick = (step: number): void => {
    const { stops } = run.circuits;
    let best = -1;
    stops.forEach((stop, index) => {
      if (stop.step !== null && stop.step <= step) best = index;
    });
    if (best >= 0) store.set({ stop: best });
  };
  const make = (title: string, lines: Line[], more: { logY?: boolean; includes?: number[] } = {}): Plot | null =>
    lines.some((line) => line.points.length > 1)
      ? plot({ title, lines, logY, x: (step) => `step ${step}`, pick, ...more })
      : null;
  const metric = run.provenance?.metric ?? "metric";
  const overlap = overlaps(run);
  const held = run.evaluations.length > 0 ? Object.keys(run.summary?.before ?? run.evaluations[0].figures) : [];
  const controls = kinds(run);
  const heldLines = (name: string): Line[] => [
    ...run.others
      .filter((other) => other.evaluations.length > 0)
      .map((other): Line => ({
        label: `${other.kind} ${other.seed}`,
        points: heldOut({ ...run, summary: null }, other.evaluations, name),
        class: `${other.kind === "circuit" ? "seed" : (controls.find((of) => of.label === other.kind)?.class ?? "seed")} thin`,
        quiet: run.others.length > 3,
      })),
    { label: "circuit", points: heldOut(run, run.evaluations, name), class: "after", dots: true },
  ];
  const found = [
    make("loss, on each step's examples", linesOf(run, "loss")),
    make(`${metric}, on each step's examples`, linesOf(run, "metric")),
    ...held.map((name) => make(`${name}, held out`, heldLines(name))),
    make("share of parameters tuned", linesOf(run, "tuned_share")),
    make(
      "overlap of circuits (Jaccard)",
      [
        { label: "with the first", points: overlap.first, class: "after", dots: overlap.first.length < 40 },
        { label: "with the one before", points: overlap.before, class: "before", dots: overlap.before.length < 40 },
      ],
      { logY: false, includes: [0, 1] },
    ),
    make("gradient norm", linesOf(run, "gradient_norm")),
    make("learning rate", [{ label: "learning rate", points: column(run.log, "learning_rate"), class: "after" }]),
  ];
  return found.filter((plot): plot is Plot => plot !== null);
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
