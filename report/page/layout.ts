// Where nodes stand in the drawing of a circuit: a row a layer, from bottom to top, heads to the left, MLPs to
// the right and half a row higher, because they are computed after their layer's heads. Nothing moves from one
// circuit to the next.

import type { Circuits, Geometry } from "./data";
import { inputOf, nodeOf, order, type NodeName } from "./names";

export interface Place extends NodeName {
  /** The middle, y downwards. */
  x: number;
  y: number;
  /** Half the width and the height. */
  w: number;
  h: number;
}

export interface Layout {
  places: Map<string, Place>;
  layers: number;
  width: number;
  height: number;
  /** The y of each layer's row. */
  rows: number[];
}

const CELL = 34;
const GAP = 26;
export const LEFT = 30;
const END = 30;

/** A row's height: low where there are many layers. */
function rowHeight(layers: number): number {
  return Math.max(38, Math.min(78, 620 / Math.max(1, layers)));
}

export function layoutOf(circuits: Circuits, geometry: Geometry | null): Layout {
  const nodes = new Map<string, NodeName>();
  const add = (name: string): void => void nodes.set(name, nodeOf(name));
  circuits.writers.forEach((writer) => add(circuits.names[writer]));
  circuits.readers.forEach((reader) => add(inputOf(circuits.names[reader]).node));
  for (let layer = 0; layer < (geometry?.layers ?? 0); layer += 1) {
    for (let head = 0; head < (geometry?.heads ?? 0); head += 1) add(`head.${layer}.${head}`);
  }
  if (nodes.size > 0) ["embed", "logits"].forEach(add);
  const all = [...nodes.values()].sort(order);
  const most = (of: (node: NodeName) => boolean): number =>
    all.filter(of).reduce((most, node) => Math.max(most, node.index + 1), 0);
  const heads = Math.max(most((node) => node.kind === "head"), 1);
  const parts = most((node) => node.kind === "mlp");
  const layers = all.reduce((most, node) => Math.max(most, node.layer + 1), 0);
  const row = rowHeight(layers);
  const mlpCell = parts > 8 ? 27 : CELL;
  // Edges from MLP to MLP go round those between, on their right.
  const arcs = parts === 1 && layers > 2 ? arcReach(row * (layers - 1)) * 0.75 : 0;
  const width = LEFT + heads * CELL + (parts > 0 ? GAP + parts * mlpCell : 0) + 14 + arcs;
  const height = layers * row + 2 * END + 34;
  const rowOf = (layer: number): number => height - END - 34 - layer * row;
  const perGroup = geometry && geometry.key_value_heads > 0 ? geometry.heads / geometry.key_value_heads : 1;
  const places = new Map<string, Place>();
  for (const node of all) {
    const y = rowOf(node.layer);
    if (node.kind === "head") {
      places.set(node.name, { ...node, x: LEFT + (node.index + 0.5) * CELL, y, w: CELL / 2 - 3, h: 9 });
    } else if (node.kind === "kv") {
      const middle = LEFT + (node.index + 0.5) * perGroup * CELL;
      places.set(node.name, { ...node, x: middle, y: y + 12.5, w: (perGroup * CELL) / 2 - 3, h: 3.5 });
    } else if (node.kind === "mlp") {
      const x = LEFT + heads * CELL + GAP + (node.index + 0.5) * mlpCell;
      places.set(node.name, { ...node, x, y: y - row / 2, w: mlpCell / 2 - 2, h: 8 });
    } else {
      const y = node.kind === "embed" ? height - END / 2 - 4 : END / 2;
      places.set(node.name, { ...node, x: (width - arcs) / 2, y, w: 34, h: 9 });
    }
  }
  return { places, layers, width, height, rows: Array.from({ length: layers }, (_, layer) => rowOf(layer)) };
}

/** An edge's curve: its ends and the points that bend it. */
export type Bend = [number, number, number, number, number, number, number, number];

/** How far an arc over a height reaches to the right. */
function arcReach(height: number): number {
  return Math.min(26 + 0.16 * height, 170);
}

const PORTS: Record<string, number> = { q: -0.55, k: 0, v: 0.55, gate: -0.4, up: 0.4, "": 0 };

/** From the writer's top to where the reader's input is at its lower side; between MLPs that stand one over the
 * other, round those between. */
export function bend(layout: Layout, writer: string, reader: string): Bend | null {
  const input = inputOf(reader);
  const [from, to] = [layout.places.get(writer), layout.places.get(input.node)];
  if (!from || !to) return null;
  if (from.kind === "mlp" && to.kind === "mlp" && from.x === to.x) {
    const [x, y0] = [from.x + from.w, from.y];
    const y1 = to.y + (input.port === "gate" ? -3 : input.port === "up" ? 3 : 0);
    const reach = arcReach(y0 - y1);
    return [x, y0, x + reach, y0, x + reach, y1, x, y1];
  }
  const shift = to.kind === "kv" ? (input.port === "k" ? -0.3 : 0.3) : (PORTS[input.port] ?? 0);
  const [x0, y0] = [from.x, from.y - from.h];
  const [x1, y1] = [to.x + shift * to.w, to.y + to.h];
  const reach = Math.max(10, (y0 - y1) * 0.45);
  return [x0, y0, x0, y0 - reach, x1, y1 + reach, x1, y1];
}

export function pointOn([ax, ay, bx, by, cx, cy, dx, dy]: Bend, t: number): [number, number] {
  const u = 1 - t;
  const [a, b, c, d] = [u * u * u, 3 * u * u * t, 3 * u * t * t, t * t * t];
  return [a * ax + b * bx + c * cx + d * dx, a * ay + b * by + c * cy + d * dy];
}
