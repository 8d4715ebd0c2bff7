// What is chosen on the page. It is in the address, so that a view can be shared and is there again after a
// reload.

export interface State {
  run: number;
  /** The index of the circuit that is shown; -1 for the last. The first is the one before tuning. */
  stop: number;
  /** How many of its edges; 0 for all. */
  top: number;
  /** Edges are hidden whose |score| is below (least / 1000)² of the largest. */
  least: number;
  node: string;
  colour: "input" | "change" | "sign";
  /** Letters of the kinds of input that are shown: q, k, v, m (MLPs), l (logits). */
  inputs: string;
  /** Letters of the kinds of writers whose edges are shown: h (heads), m (MLPs), e (the embedding). */
  writers: string;
  sign: "both" | "plus" | "minus";
  change: "all" | "new" | "kept" | "lost";
  from: number;
  /** The last layer that is shown; -1 for the last there is. */
  to: number;
  side: boolean;
  log: boolean;
  example: string;
  head: string;
  pattern: "matrix" | "lines";
  measure: string;
}

export const START: State = {
  run: 0,
  stop: 0,
  top: 0,
  least: 0,
  node: "",
  colour: "input",
  inputs: "qkvml",
  writers: "hme",
  sign: "both",
  change: "all",
  from: 0,
  to: -1,
  side: false,
  log: false,
  example: "0",
  head: "",
  pattern: "matrix",
  measure: "score",
};

type Listener = (state: State, changed: Set<keyof State>) => void;

export class Store {
  state: State;
  private listeners: Listener[] = [];
  private waiting: Set<keyof State> | null = null;

  constructor() {
    this.state = { ...START, ...read(location.hash) };
    window.addEventListener("hashchange", () => {
      // An anchor of a panel is no state.
      if (location.hash.includes("=")) this.set(read(location.hash), true);
    });
  }

  listen(listener: Listener): void {
    this.listeners.push(listener);
  }

  /** Changes what is chosen; who listens is told once a frame. */
  set(change: Partial<State>, whole = false): void {
    const next = { ...(whole ? START : this.state), ...change };
    const changed = (Object.keys(next) as (keyof State)[]).filter((key) => next[key] !== this.state[key]);
    if (changed.length === 0) return;
    this.state = next;
    if (this.waiting) {
      changed.forEach((key) => this.waiting?.add(key));
      return;
    }
    this.waiting = new Set(changed);
    requestAnimationFrame(() => this.tell());
  }

  /** Tells everybody now. */
  private tell(): void {
    const changed = this.waiting ?? new Set();
    this.waiting = null;
    this.listeners.forEach((listener) => listener(this.state, changed));
    this.write();
  }

  private write(): void {
    const parts = (Object.keys(START) as (keyof State)[])
      .filter((key) => this.state[key] !== START[key])
      .map((key) => `${key}=${encodeURIComponent(String(this.state[key]))}`);
    try {
      history.replaceState(null, "", parts.length > 0 ? `#${parts.join("&")}` : location.pathname + location.search);
    } catch {
      // A page in another's frame may have no address of its own.
    }
  }
}

function read(hash: string): Partial<State> {
  const state: Record<string, unknown> = {};
  for (const [key, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (!(key in START)) continue;
    const like = START[key as keyof State];
    if (typeof like === "number") {
      if (Number.isInteger(Number(text))) state[key] = Number(text);
    } else if (typeof like === "boolean") state[key] = text === "true";
    else state[key] = text;
  }
  return state as Partial<State>;
}
