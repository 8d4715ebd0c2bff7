// The data that the page carries along, as the crate writes it (src/folder.rs, src/comparison.rs).

export type Figures = Record<string, number | string>;

export interface Stop {
  /** `before`, `after` or `step N`. */
  label: string;
  step: number | null;
  /** Indices of edges, best first. */
  edges: number[];
  scores: number[];
  /** Empty without a bootstrap. */
  standard_errors: (number | null)[];
  resample_shares: (number | null)[];
}

export interface Circuits {
  names: string[];
  writers: number[];
  readers: number[];
  stops: Stop[];
}

export type Columns = Record<string, (number | null)[]>;

export interface Evaluation {
  step: number;
  figures: Figures;
}

export interface Other {
  kind: string;
  seed: number;
  log: Columns;
  evaluations: Evaluation[];
}

export interface CurvePoint {
  fraction: number;
  n: number;
  kept: number;
  metric: number;
  faithfulness: number;
}

export interface Curve {
  points: CurvePoint[];
  cpr: number;
  cmd: number;
}

export interface Faithfulness {
  metric_full: number;
  metric_empty: number;
  edges: number;
  circuit: { faithfulness?: number; n?: number; complement?: { faithfulness: number } };
  cpr: number;
  cmd: number;
  smallest: { reach: number; n: number; fraction: number; faithfulness: number } | null;
  curve: Curve;
  random_curve?: Curve;
  random?: { cpr: number; cmd: number; smallest: Faithfulness["smallest"] };
}

export interface Answer {
  probability: number;
  rank: number;
}

export interface Lens {
  layer: number | null;
  right: Answer;
  wrong: Answer;
}

export interface Example {
  origin: string;
  tokens: string[];
  spans: Record<string, number[]>;
  keys: { position: number; right: string[]; wrong: string[]; lens: Lens[] }[];
  attention?: Record<string, number[]>;
}

export interface Observed {
  heads: string[];
  examples: Example[];
  nodes: { node: string; effect: number }[];
  looks: { node: string; looks: Record<string, { share: number; largest: number }> }[];
  spans: Record<string, number>;
  movements: { owner: string; moved: number; norm: number }[];
}

export interface Geometry {
  architecture: string;
  layers: number;
  heads: number;
  key_value_heads: number;
  d_model: number;
  d_head: number;
  mlp_width: number;
  vocabulary: number;
}

export interface Provenance {
  model: Geometry;
  model_path: string;
  bos: string | null;
  task: string;
  metric: string;
  method: string;
  ablation: string;
  positions: string;
  nodes: string[];
  seed: number;
  examples: number;
  version: string;
}

export interface Summary {
  task: string;
  selector: string;
  before: Figures;
  after: Figures;
  parameters: number;
  tuned_parameters: number;
  tuned_parameter_ratio: number;
  steps: number;
  discovery_seconds: number;
  tuning_seconds: number;
  seconds: number;
  bootstrap_before?: { resamples: number; overlap: number };
  bootstrap_after?: { resamples: number; overlap: number };
  shown?: string[];
  controls?: { seeds: number[]; before: { repeats: Figures[] }; kinds: { kind: string }[] };
}

export interface Run {
  name: string;
  folder: string;
  command: string;
  description: string;
  config: Record<string, unknown>;
  /** SHA-256 of the files that it read, by path. */
  inputs: Record<string, string>;
  /** That of the model's weights. */
  weights: string | null;
  summary: Summary | null;
  error: string | null;
  provenance: Provenance | null;
  log: Columns;
  evaluations: Evaluation[];
  others: Other[];
  circuits: Circuits;
  faithfulness: { before: Faithfulness | null; after: Faithfulness | null };
  observed: { before: Observed | null; after: Observed | null };
}

export interface Row {
  run: number;
  name: string;
  task: string;
  what: string;
  selector: string;
  seeds: number;
  tuned: number;
  figures: Figures;
  margins: Figures;
  differences: Figures;
  difference_margins: Figures;
}

export interface Data {
  version: string;
  runs: Run[];
  rows: Row[];
  /** Those over runs that differ by their seed alone. */
  means: Row[];
}

/** Reads the data out of the page: JSON, deflated, in base64. */
export async function load(): Promise<Data> {
  const element = document.getElementById("data");
  const text = atob(JSON.parse(element?.textContent ?? '""') as string);
  const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(inflated).text()) as Data;
}

/** A setting by its path, as text; empty where there is none. */
export function setting(run: Run, ...path: string[]): string {
  let value: unknown = run.config;
  for (const key of path) {
    value = value !== null && typeof value === "object" ? (value as Record<string, unknown>)[key] : undefined;
  }
  return value === undefined || value === null ? "" : typeof value === "string" ? value : JSON.stringify(value);
}
