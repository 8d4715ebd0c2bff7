// What nodes and inputs are called, and what that says of them.

export type Kind = "head" | "kv" | "mlp" | "embed" | "logits";
export type Input = "q" | "k" | "v" | "m" | "l";

export interface NodeName {
  name: string;
  kind: Kind;
  layer: number;
  /** A head's or an MLP part's number. */
  index: number;
}

/** A node by its name: `embed`, `head.L.H`, `head.L.kvJ`, `mlp.L`, `mlp.L.I`, `logits`. */
export function nodeOf(name: string): NodeName {
  const [kind, layer, index] = name.split(".");
  if (kind === "head" && index?.startsWith("kv")) {
    return { name, kind: "kv", layer: Number(layer), index: Number(index.slice(2)) };
  }
  if (kind === "head" || kind === "mlp") return { name, kind, layer: Number(layer), index: Number(index ?? 0) };
  return { name, kind: kind === "logits" ? "logits" : "embed", layer: -1, index: 0 };
}

/** An input's node, and how it is read: `head.1.2.q` is q of `head.1.2`, `mlp.0.gate` gate of `mlp.0`. */
export function inputOf(name: string): { node: string; port: string; input: Input } {
  const match = /^(.*)\.(q|k|v|gate|up)$/.exec(name);
  const [node, port] = match ? [match[1], match[2]] : [name, ""];
  const input = port === "q" || port === "k" || port === "v" ? port : node === "logits" ? "l" : "m";
  return { node, port, input };
}

/** Computation order, top to bottom of a list. */
export function order(a: NodeName, b: NodeName): number {
  const rank = { embed: 0, head: 1, kv: 1, mlp: 1, logits: 2 };
  const within = { kv: 0, head: 1, mlp: 2, embed: 0, logits: 0 };
  return (
    rank[a.kind] - rank[b.kind] || a.layer - b.layer || within[a.kind] - within[b.kind] || a.index - b.index
  );
}
