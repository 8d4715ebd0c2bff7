// Edges and nodes as tables, of what the drawing shows.

import type { Run } from "./data";
import { h } from "./dom";
import { allEdges, filtered, nodeScores, stopOf, type Edge } from "./edges";
import { number, percent, signed } from "./format";
import { nodeOf } from "./names";
import { facts, type Facts } from "./node-facts";
import type { State, Store } from "./state";
import { table } from "./table";

interface NodeLine extends Facts {
  name: string;
  writes: number;
  reads: number;
  edges: number;
}

export function tablesPanel(run: Run, store: Store): HTMLElement | null {
  if (run.circuits.stops.length === 0) return null;
  const link = (name: string): HTMLElement =>
    h("button", { type: "button", class: "link", click: () => store.set({ node: name }) }, name);
  const hasErrors = run.circuits.stops.some((stop) => stop.standard_errors.length > 0);
  const edges = table<Edge>({
    columns: [
      { name: "rank", value: (edge) => edge.rank, number: true },
      { name: "writer", value: (edge) => edge.writer, cell: (edge) => link(edge.writer) },
      { name: "reader", value: (edge) => edge.reader, cell: (edge) => h("span", {}, link(edge.node), edge.reader.slice(edge.node.length)) },
      { name: "score", value: (edge) => edge.score, cell: (edge) => signed(edge.score), number: true },
      ...(hasErrors
        ? [
            { name: "\u00b1", about: "standard error over resamples", value: (edge: Edge) => edge.error ?? -1, cell: (edge: Edge) => number(edge.error), number: true },
            { name: "resamples", about: "share of resamples whose circuit has it", value: (edge: Edge) => edge.share ?? -1, cell: (edge: Edge) => (edge.share === null ? "" : percent(edge.share, 0)), number: true },
          ]
        : []),
      { name: "change", about: "against the first circuit", value: (edge) => edge.change },
    ],
    text: (edge) => `${edge.writer} ${edge.reader} ${edge.change}`,
    chosen: (edge) => store.state.node !== "" && (edge.writer === store.state.node || edge.node === store.state.node),
    sort: [0, false],
    search: "search edges: head.1.2, mlp, .q, new",
  });
  const of = facts(run);
  const nodes = table<NodeLine>({
    columns: [
      { name: "node", value: (node) => node.name, cell: (node) => link(node.name) },
      { name: "layer", value: (node) => nodeOf(node.name).layer, cell: (node) => String(Math.max(0, nodeOf(node.name).layer)), number: true },
      { name: "edges", value: (node) => node.edges, number: true },
      { name: "writes", about: "sum of |score| of the edges it writes", value: (node) => node.writes, cell: (node) => number(node.writes), number: true },
      { name: "reads", about: "sum of |score| of the edges it reads", value: (node) => node.reads, cell: (node) => number(node.reads), number: true },
      ...(of.hasEffects
        ? [
            { name: "effect before", about: "direct effect on the logit difference", value: (node: NodeLine) => node.effectBefore ?? 0, cell: (node: NodeLine) => number(node.effectBefore), number: true },
            { name: "effect after", value: (node: NodeLine) => node.effectAfter ?? 0, cell: (node: NodeLine) => number(node.effectAfter), number: true },
          ]
        : []),
      ...(of.hasMovements
        ? [{ name: "moved", about: "how far its rows moved, of their norm", value: (node: NodeLine) => node.moved ?? 0, cell: (node: NodeLine) => (node.moved === undefined ? "" : percent(node.moved, 2)), number: true }]
        : []),
    ],
    text: (node) => node.name,
    chosen: (node) => node.name === store.state.node,
    sort: [3, true],
    search: "search nodes",
  });
  const update = (state: State): void => {
    const index = stopOf(run, state.stop);
    const shown = filtered(allEdges(run, index, state.top), state);
    edges.set(shown);
    const degree = new Map<string, number>();
    shown.forEach((edge) => [edge.writer, edge.node].forEach((name) => degree.set(name, (degree.get(name) ?? 0) + 1)));
    const sums = nodeScores(run, run.circuits.stops[index]);
    nodes.set([...degree].map(([name, edges]) => ({ name, edges, ...(sums.get(name) ?? { writes: 0, reads: 0 }), ...of.of(name) })));
  };
  const element = h("div", { class: "two" }, h("div", {}, h("h3", {}, "Edges shown above"), edges.element), h("div", {}, h("h3", {}, "Their nodes"), nodes.element));
  update(store.state);
  // Behind the drawing, so that a slider moves it and not this.
  let timer = 0;
  store.listen((state, changed) => {
    if (!element.isConnected || [...changed].every((key) => ["log", "example", "head", "pattern", "measure", "colour"].includes(key))) return;
    clearTimeout(timer);
    timer = window.setTimeout(() => update(state), 160);
  });
  return element;
}
