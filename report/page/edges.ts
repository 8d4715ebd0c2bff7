// The edges of a circuit that are shown: what the sliders and filters leave of it, and how each stands to the
// first circuit.

import type { Run, Stop } from "./data";
import { inputOf, nodeOf, type Input } from "./names";
import type { State } from "./state";

/** What an edge is whatever circuit it is in. */
interface Ends {
  /** Its index among all the run's edges. */
  id: number;
  writer: string;
  reader: string;
  /** The reader's node. */
  node: string;
  input: Input;
  /** The layers of both nodes; -1 of the embedding and the logits. */
  layers: [number, number];
}

export interface Edge extends Ends {
  rank: number;
  score: number;
  error: number | null;
  share: number | null;
  change: "kept" | "new" | "lost";
}

const known = new WeakMap<Run, Ends[]>();

/** All edges of a run, worked out once. */
function endsOf(run: Run): Ends[] {
  const found = known.get(run);
  if (found) return found;
  const { names, writers, readers } = run.circuits;
  const ends = writers.map((of, id): Ends => {
    const [writer, reader] = [names[of], names[readers[id]]];
    const { node, input } = inputOf(reader);
    return { id, writer, reader, node, input, layers: [nodeOf(writer).layer, nodeOf(node).layer] };
  });
  known.set(run, ends);
  return ends;
}

/** The circuit that others are held against: the first of all. */
export function reference(run: Run): Stop | null {
  return run.circuits.stops[0] ?? null;
}

/** The circuit that is chosen. */
export function stopOf(run: Run, index: number): number {
  const last = run.circuits.stops.length - 1;
  return index < 0 || index > last ? last : index;
}

function edge(ends: Ends[], stop: Stop, rank: number, change: Edge["change"]): Edge {
  const { id, writer, reader, node, input, layers } = ends[stop.edges[rank]];
  const error = stop.standard_errors[rank] ?? null;
  const share = stop.resample_shares[rank] ?? null;
  return { id, writer, reader, node, input, layers, rank: rank + 1, score: stop.scores[rank], error, share, change };
}

/** A circuit's first `top` edges, then those of the first circuit's that it lost. */
export function allEdges(run: Run, index: number, top: number): Edge[] {
  const stop = run.circuits.stops[index];
  const first = reference(run);
  if (!stop || !first) return [];
  const cut = (of: Stop): number => (top > 0 ? Math.min(top, of.edges.length) : of.edges.length);
  const ends = endsOf(run);
  const before = new Set(first.edges.slice(0, cut(first)));
  const own = stop.edges.slice(0, cut(stop));
  const now = new Set(own);
  const edges = own.map((id, rank) => edge(ends, stop, rank, before.has(id) ? "kept" : "new"));
  first.edges.slice(0, cut(first)).forEach((id, rank) => {
    if (!now.has(id)) edges.push(edge(ends, first, rank, "lost"));
  });
  return edges;
}

/** What the filters leave. Lost edges are there only where they are asked for. */
export function filtered(edges: Edge[], state: State): Edge[] {
  const largest = edges.reduce((most, of) => Math.max(most, Math.abs(of.score)), 0);
  const least = (state.least / 1000) ** 2 * largest;
  const last = state.to < 0 ? Infinity : state.to;
  const withLost = state.change === "lost" || state.colour === "change";
  const within = (layer: number): boolean => layer < 0 || (layer >= state.from && layer <= last);
  return edges.filter(
    (of) =>
      Math.abs(of.score) >= least &&
      state.inputs.includes(of.input) &&
      state.writers.includes(of.writer[0]) &&
      (state.sign === "both" || (state.sign === "plus") === of.score >= 0) &&
      (state.change === "all" ? of.change !== "lost" || withLost : of.change === state.change) &&
      within(of.layers[0]) &&
      within(of.layers[1]),
  );
}

/** |A ∩ B| / |A ∪ B|; 1 of two empty ones. */
export function jaccard(a: number[], b: number[]): number {
  const set = new Set(a);
  const common = b.filter((id) => set.has(id)).length;
  const union = a.length + b.length - common;
  return union === 0 ? 1 : common / union;
}

/** What each node's edges score together in a circuit, the sum of |score|, by their ends. */
export function nodeScores(run: Run, stop: Stop): Map<string, { writes: number; reads: number }> {
  const ends = endsOf(run);
  const sums = new Map<string, { writes: number; reads: number }>();
  const of = (name: string): { writes: number; reads: number } => {
    const found = sums.get(name) ?? { writes: 0, reads: 0 };
    sums.set(name, found);
    return found;
  };
  stop.edges.forEach((id, rank) => {
    const size = Math.abs(stop.scores[rank]);
    of(ends[id].writer).writes += size;
    of(ends[id].node).reads += size;
  });
  return sums;
}
