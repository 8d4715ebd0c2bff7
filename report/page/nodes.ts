// The panel of nodes: a map of all of them by a number, and everything that is known of the chosen one.

import type { Run } from "./data";
import { h, s, select } from "./dom";
import { nodeScores, stopOf } from "./edges";
import { number, percent, short, signed } from "./format";
import { nodeOf, order } from "./names";
import { facts, parts, type Facts } from "./node-facts";
import { legend, plot, type Line } from "./plot";
import type { State, Store } from "./state";

interface Measure {
  name: string;
  of: (node: string) => number | undefined;
}

/** The numbers that a map can show. */
function measures(run: Run, state: State): Map<string, Measure> {
  const stop = run.circuits.stops[stopOf(run, state.stop)];
  const scores = stop ? nodeScores(run, stop) : new Map<string, { writes: number; reads: number }>();
  const known = facts(run);
  const cache = new Map<string, Facts>();
  const fact = (node: string): Facts => {
    const found = cache.get(node) ?? known.of(node);
    cache.set(node, found);
    return found;
  };
  const found = new Map<string, Measure>();
  if (stop) {
    const of = (node: string): number | undefined => {
      const sum = scores.get(node);
      return sum ? sum.writes + sum.reads : undefined;
    };
    found.set("score", { name: `score in the circuit: ${stop.label}`, of });
  }
  if (known.hasEffects) {
    found.set("before", { name: "direct effect before tuning", of: (node) => fact(node).effectBefore });
    found.set("after", { name: "direct effect after tuning", of: (node) => fact(node).effectAfter });
    const change = (node: string): number | undefined => {
      const { effectBefore, effectAfter } = fact(node);
      return effectBefore === undefined || effectAfter === undefined ? undefined : effectAfter - effectBefore;
    };
    found.set("change", { name: "change of the direct effect", of: change });
  }
  if (known.hasMovements) found.set("moved", { name: "how far its rows moved, of their norm", of: (node) => fact(node).moved });
  for (const span of Object.keys(run.observed.before?.spans ?? {})) {
    for (const when of ["before", "after"] as const) {
      const looks = new Map((run.observed[when]?.looks ?? []).map((of) => [of.node, of.looks[span]?.share]));
      found.set(`${span} ${when}`, { name: `attention to ${span}, ${when} tuning`, of: (node) => looks.get(node) });
    }
  }
  return found;
}

/** All nodes that have a place in the map, in computation order. */
function nodesOf(run: Run): string[] {
  const names = new Set<string>();
  for (const observed of [run.observed.before, run.observed.after]) {
    observed?.nodes.forEach(({ node }) => names.add(node));
    observed?.looks.forEach(({ node }) => names.add(node));
  }
  run.circuits.stops.forEach((stop) => nodeScores(run, stop).forEach((_, name) => names.add(name)));
  const own = [...names].map(nodeOf).filter((node) => node.kind === "head" || node.kind === "mlp");
  return own.sort(order).map((node) => node.name);
}

export function nodesPanel(run: Run, store: Store): HTMLElement | null {
  const nodes = nodesOf(run);
  if (nodes.length === 0) return null;
  const element = h("div", { class: "two nodes" });
  const update = (state: State): void => {
    const known = measures(run, state);
    const measure = known.get(state.measure) ?? [...known.values()][0];
    if (!measure) return;
    const chosen = state.node || strongest(nodes, measure);
    const options = [...known].map(([key, { name }]): [string, string] => [key, name]);
    element.replaceChildren(
      h("div", {}, select("colour by", options, known.has(state.measure) ? state.measure : options[0][0], (key) => store.set({ measure: key })), map(nodes, measure, chosen, store)),
      h("div", { class: "node-detail" }, ...detail(run, chosen, state)),
    );
  };
  update(store.state);
  let timer = 0;
  store.listen((state, changed) => {
    if (!element.isConnected || !["stop", "node", "measure"].some((key) => changed.has(key as keyof State))) return;
    clearTimeout(timer);
    timer = window.setTimeout(() => update(state), changed.has("stop") ? 160 : 0);
  });
  return element;
}

function strongest(nodes: string[], { of }: Measure): string {
  return nodes.reduce((best, node) => (Math.abs(of(node) ?? 0) > Math.abs(of(best) ?? 0) ? node : best), nodes[0]);
}

/** Layers down, heads and MLPs across; blue above 0, orange below. */
function map(nodes: string[], measure: Measure, chosen: string, store: Store): HTMLElement {
  const all = nodes.map(nodeOf);
  const heads = all.reduce((most, node) => (node.kind === "head" ? Math.max(most, node.index + 1) : most), 0);
  const parts = all.reduce((most, node) => (node.kind === "mlp" ? Math.max(most, node.index + 1) : most), 0);
  const layers = all.reduce((most, node) => Math.max(most, node.layer + 1), 0);
  const largest = nodes.reduce((most, node) => Math.max(most, Math.abs(measure.of(node) ?? 0)), 0);
  const cell = 20;
  const [left, top] = [28, 16];
  const width = left + (heads + parts) * cell + (parts > 0 ? 8 : 0) + 4;
  const picture = s("svg", { viewBox: `0 0 ${width} ${top + layers * cell + 4}`, role: "group", "aria-label": measure.name });
  picture.style.maxWidth = `${(layers > 12 ? 1.05 : 1.6) * width}px`;
  const place = (kind: string, index: number): number => left + (kind === "mlp" ? heads * cell + 8 : 0) + index * cell;
  const text = (x: number, y: number, content: string, anchor = "middle"): void =>
    void picture.append(s("text", { x, y, "text-anchor": anchor }, content));
  for (let head = 0; head < heads; head += 1) text(place("head", head) + cell / 2, 11, String(head));
  if (parts > 0) text(place("mlp", 0) + (parts * cell) / 2, 11, parts > 1 ? "MLP parts" : "M");
  for (let layer = 0; layer < layers; layer += 1) text(left - 6, top + (layer + 0.5) * cell + 3.5, `L${layer}`, "end");
  for (const { name, kind, layer, index } of all) {
    const value = measure.of(name);
    const rect = s("rect", {
      class: `cell ${(value ?? 0) < 0 ? "minus" : "plus"}${name === chosen ? " chosen" : ""}`,
      x: place(kind, index) + 1,
      y: top + layer * cell + 1,
      width: cell - 2,
      height: cell - 2,
      tabindex: name === chosen ? 0 : -1,
      role: "button",
      "aria-label": `${name} ${value === undefined ? "" : number(value)}`,
      click: () => store.set({ node: name }),
      keydown: (event: KeyboardEvent) => move(event, picture, store),
      "data-name": name,
    }, s("title", {}, `${name}: ${value === undefined ? "not in it" : signed(value)}`));
    rect.style.fillOpacity = String(value === undefined || largest === 0 ? 0 : 0.06 + (0.94 * Math.abs(value)) / largest);
    picture.append(rect);
  }
  const scale = largest === 0 ? "all are 0" : `full colour: \u00b1${short(largest)}; blue above 0, orange below`;
  return h("div", {}, h("div", { class: "scroll map" }, picture), h("p", { class: "note" }, scale));
}

/** Arrow keys go from cell to cell; Enter chooses. */
function move(event: KeyboardEvent, picture: SVGSVGElement, store: Store): void {
  const here = event.target as SVGRectElement;
  if (event.key === "Enter" || event.key === " ") store.set({ node: here.dataset.name ?? "" });
  else {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    const at = (rect: Element): [number, number] => [Number(rect.getAttribute("x")), Number(rect.getAttribute("y"))];
    const [x, y] = at(here);
    const others = [...picture.querySelectorAll<SVGRectElement>(".cell")].filter((other) => {
      const [ox, oy] = at(other);
      return step[0] !== 0 ? oy === y && (ox - x) * step[0] > 0 : ox === x && (oy - y) * step[1] > 0;
    });
    const distance = (other: SVGRectElement): number => Math.abs(at(other)[0] - x) + Math.abs(at(other)[1] - y);
    others.sort((a, b) => distance(a) - distance(b))[0]?.focus();
  }
  event.preventDefault();
}

/** Everything that is known of a node. */
function detail(run: Run, name: string, state: State): HTMLElement[] {
  const known = facts(run).of(name);
  const found: HTMLElement[] = [h("h3", {}, name)];
  const stop = run.circuits.stops[stopOf(run, state.stop)];
  const lines = scoreLines(run, name);
  if (lines.some((line) => line.points.length > 1)) {
    const scores = plot({ title: "score over steps: sum of |score| of its edges in the circuit", lines, x: (step) => `step ${step}`, includes: [0] });
    scores.mark(stop?.step ?? null);
    found.push(scores.element, legend(lines));
  }
  if (known.effectBefore !== undefined) {
    const change = known.effectAfter === undefined ? "" : ` (${signed(known.effectAfter - known.effectBefore)})`;
    found.push(fact("direct effect on the logit difference", `${signed(known.effectBefore)} before, ${known.effectAfter === undefined ? "unknown" : signed(known.effectAfter)} after${change}`));
  }
  const looks = attention(run, name);
  if (looks) found.push(looks);
  const moved = parts(run, name);
  if (moved.length > 0) {
    const largest = Math.max(...moved.map((part) => part.moved / (part.norm || 1)));
    found.push(
      h("h4", {}, "How far its rows moved, of their norm"),
      h("ul", { class: "bars" }, ...moved.map((part) => bar(part.part, part.moved / (part.norm || 1), largest, "after", percent(part.moved / (part.norm || 1), 2)))),
    );
  }
  if (found.length === 1) found.push(h("p", { class: "note" }, "Nothing more is known of it: the run looked at no examples."));
  return found;
}

function fact(name: string, value: string): HTMLElement {
  return h("p", { class: "fact" }, h("span", {}, name), " ", h("strong", {}, value));
}

/** What a node writes and reads at every rediscovery. */
function scoreLines(run: Run, name: string): Line[] {
  const points: Record<"writes" | "reads", [number, number][]> = { writes: [], reads: [] };
  for (const stop of run.circuits.stops) {
    if (stop.step === null) continue;
    const sum = nodeScores(run, stop).get(name);
    points.writes.push([stop.step, sum?.writes ?? 0]);
    points.reads.push([stop.step, sum?.reads ?? 0]);
  }
  const dots = points.writes.length < 40;
  return [
    { label: "reads", points: points.reads, class: "before", dots },
    { label: "writes", points: points.writes, class: "after", dots },
  ];
}

function bar(label: string, value: number, largest: number, kind: string, text: string): HTMLElement {
  const inner = h("span", { class: `bar ${kind}` });
  inner.style.width = `${largest > 0 ? (100 * value) / largest : 0}%`;
  return h("li", {}, h("span", {}, label), h("span", { class: "track" }, inner), h("span", { class: "number" }, text));
}

/** Where a head looks from the key positions, before tuning and after it. */
function attention(run: Run, name: string): HTMLElement | null {
  const of = (when: "before" | "after"): Record<string, { share: number }> =>
    run.observed[when]?.looks.find((looks) => looks.node === name)?.looks ?? {};
  const [before, after] = [of("before"), of("after")];
  const spans = Object.keys(before);
  if (spans.length === 0) return null;
  const track = (share: number, kind: string): HTMLElement => {
    const inner = h("span", { class: `bar ${kind}` });
    inner.style.width = `${100 * share}%`;
    return h("span", { class: "track" }, inner);
  };
  const lines = spans.map((span) => {
    const [from, to] = [before[span].share, after[span]?.share];
    const text = to === undefined ? percent(from) : `${percent(from)} \u2192 ${percent(to)}`;
    return h("li", {}, h("span", {}, span), h("span", { class: "tracks" }, track(from, "before"), to === undefined ? null : track(to, "after")), h("span", { class: "number" }, text));
  });
  return h("div", {}, h("h4", {}, "Attention from the key position, before and after"), h("ul", { class: "bars" }, ...lines));
}
