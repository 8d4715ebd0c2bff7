// Faithfulness against the size of the circuit, before tuning and after it, beside a random ranking.

import type { Curve, Faithfulness, Run } from "./data";
import { h } from "./dom";
import { count, number, percent } from "./format";
import { legend, plot, type Line } from "./plot";

export function faithfulnessPanel(run: Run): HTMLElement | null {
  const files = (["before", "after"] as const).flatMap((when) => {
    const file = run.faithfulness[when];
    return file ? [{ when, file }] : [];
  });
  if (files.length === 0) return null;
  const least = Math.min(...files.flatMap(({ file }) => file.curve.points.map((point) => point.fraction).filter((share) => share > 0)));
  // No edge at all stands at the left end of the logarithmic axis.
  const zero = least / 2.5;
  const points = (curve: Curve): [number, number][] =>
    curve.points.map((point): [number, number] => [point.fraction || zero, point.faithfulness]).sort((a, b) => a[0] - b[0]);
  const lines = files.flatMap(({ when, file }): Line[] => [
    ...(file.random_curve ? [{ label: `random, ${when}`, points: points(file.random_curve), class: `${when} dashed thin` }] : []),
    { label: when, points: points(file.curve), class: when, dots: true },
    ...own(file, when),
  ]);
  const whole = plot({
    title: "faithfulness",
    lines,
    logX: true,
    x: (share) => (share === zero ? "no edge" : `${percent(share, share < 0.01 ? 2 : 1)} of the edges`),
    tick: (share) => (share <= zero ? "0" : percent(share, share < 0.01 ? 1 : 0)),
    marks: [zero],
    rules: [{ at: 1, name: "whole model" }, { at: 0, name: "no edge" }],
    includes: [0, 1],
    width: 620,
    height: 300,
  });
  return h(
    "div",
    {},
    legend(lines.filter((line) => line.points.length > 1).map((line) => ({ label: line.label, class: line.class }))),
    h("p", { class: "note" }, "A ring is the run's own circuit."),
    h("div", { class: "wide" }, whole.element),
    table(files),
  );
}

/** The run's own circuit, as a point. */
function own({ circuit, edges }: Faithfulness, when: string): Line[] {
  const { n, faithfulness } = circuit;
  if (n === undefined || faithfulness === undefined || n === 0) return [];
  return [{ label: `own circuit, ${when}`, points: [[n / edges, faithfulness]], class: `${when} ring` }];
}

function smallest(found: Faithfulness["smallest"]): string {
  return found ? `${count(found.n)} edges (${percent(found.fraction)})` : "none";
}

function table(files: { when: string; file: Faithfulness }[]): HTMLElement {
  const line = (name: string, about: string, of: (file: Faithfulness) => string): HTMLElement =>
    h("tr", {}, h("th", { scope: "row", title: about }, name), ...files.map(({ file }) => h("td", { class: "number" }, of(file))), h("td", { class: "note" }, about));
  const reach = number(files.map(({ file }) => file.smallest?.reach).find((reach) => reach !== undefined) ?? "the asked-for share");
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, h("th", {}), ...files.map(({ when }) => h("th", { scope: "col", class: "number" }, when)), h("th", {}))),
      h(
        "tbody",
        {},
        line("CPR", "area under the curve: larger is better", (file) => number(file.cpr)),
        line("CPR, random", "of the same edges in a random order", (file) => number(file.random?.cpr)),
        line("CMD", "area between the curve and 1: smaller is better", (file) => number(file.cmd)),
        line("CMD, random", "", (file) => number(file.random?.cmd)),
        line("the circuit", "faithfulness of the run's own circuit", (file) => number(file.circuit.faithfulness)),
        line("its complement", "of all other edges: near 0 where the circuit is complete", (file) => number(file.circuit.complement?.faithfulness)),
        line("smallest", `the fewest edges from which on faithfulness stays above ${reach}`, (file) =>
          smallest(file.smallest),
        ),
        line("smallest, random", "", (file) => (file.random ? smallest(file.random.smallest) : "")),
        line("m(M)", "the metric of the whole model", (file) => number(file.metric_full)),
        line("m(\u2205)", "the metric without any edge", (file) => number(file.metric_empty)),
      ),
    ),
  );
}
