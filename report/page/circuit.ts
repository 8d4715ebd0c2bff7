// The panel of the circuit: sliders over rediscoveries and over the number of edges, filters, the drawing, and
// what is at the chosen node.

import type { Run, Stop } from "./data";
import { choice, csv, download, h, slider, tick } from "./dom";
import { Drawing } from "./drawing";
import { allEdges, filtered, jaccard, nodeScores, reference, stopOf, type Edge } from "./edges";
import { count, estimate, number, signed } from "./format";
import { layoutOf, type Layout } from "./layout";
import type { State, Store } from "./state";

const INPUTS: [string, string, string][] = [
  ["q", "query", "q"],
  ["k", "key", "k"],
  ["v", "value", "v"],
  ["m", "MLP", "m"],
  ["l", "logits", "l"],
];

const WRITERS: [string, string, string][] = [
  ["h", "heads", ""],
  ["m", "MLPs", ""],
  ["e", "embedding", ""],
];

export function circuitPanel(run: Run, store: Store): HTMLElement | null {
  const { stops } = run.circuits;
  if (stops.length === 0) return null;
  return new Panel(run, store).element;
}

class Panel {
  readonly element = h("div", { class: "circuit" });
  private layout: Layout;
  private main: Drawing;
  private other: Drawing;
  private otherFigure: HTMLElement;
  private caption = h("p", { class: "caption", "aria-live": "polite" });
  private otherCaption = h("p", { class: "caption" });
  private inspector = h("aside", { class: "inspector", "aria-label": "What is at the chosen node" });
  private playing = 0;
  /** The largest |score| of the circuit that is shown. */
  private largest = 0;
  private sliders;
  private key = h("ul", { class: "legend" });

  constructor(
    private run: Run,
    private store: Store,
  ) {
    this.layout = layoutOf(run.circuits, run.provenance?.model ?? null);
    const choose = (node: string): void => store.set({ node: node === store.state.node ? "" : node });
    this.main = new Drawing(this.layout, "The chosen circuit", choose);
    this.other = new Drawing(this.layout, "The first circuit", choose);
    const { stops } = run.circuits;
    const most = stops.reduce((most, stop) => Math.max(most, stop.edges.length), 1);
    const layers = Math.max(0, this.layout.layers - 1);
    this.sliders = {
      stop: slider("circuit", (value) => stops[value]?.label ?? "", (stop) => store.set({ stop })),
      top: slider("edges", (value) => `best ${count(value)}`, (top) => store.set({ top: top === most ? 0 : top }), 1),
      least: slider("|score| from", (value) => number((value / 1000) ** 2 * this.largest), (least) => store.set({ least })),
      from: slider("from layer", String, (from) => store.set({ from })),
      to: slider("to layer", String, (to) => store.set({ to: to === layers ? -1 : to })),
    };
    this.otherFigure = h("div", { class: "half" }, this.otherCaption, this.other.element);
    this.element.append(
      this.controls(),
      h(
        "div",
        { class: "stage" },
        h("div", { class: "pair" }, this.otherFigure, h("div", { class: "half" }, this.caption, this.main.element)),
        this.inspector,
      ),
    );
    this.update(store.state);
    store.listen((state, changed) => {
      const own: (keyof State)[] = ["stop", "top", "least", "node", "colour", "inputs", "writers", "sign", "change", "from", "to", "side"];
      if (this.element.isConnected && own.some((key) => changed.has(key))) this.update(state);
    });
  }

  private controls(): HTMLElement {
    const { store } = this;
    const { state } = store;
    const last = this.run.circuits.stops.length - 1;
    const jump = (text: string, stop: number): HTMLElement => h("button", { type: "button", click: () => store.set({ stop }) }, text);
    const play = h("button", { type: "button", click: () => this.play(play) }, "\u25b6 play");
    const inputs = this.boxes("read through", INPUTS, "inputs");
    const writers = this.boxes("written by", WRITERS, "writers");
    const buttons: [string, () => void][] = [
      ["SVG", () => download(`${this.run.name}.svg`, "image/svg+xml", this.main.file(this.caption.textContent ?? ""))],
      ["CSV", () => download(`${this.run.name}.csv`, "text/csv", this.table())],
    ];
    return h(
      "div",
      { class: "controls" },
      h("div", { class: "line" }, this.sliders.stop.element, jump("before", 0), jump("after", last), play),
      h("div", { class: "line" }, this.sliders.top.element, this.sliders.least.element, tick("side by side with the first", state.side, (side) => store.set(side && store.state.stop === 0 ? { side, stop: last } : { side }))),
      h(
        "details",
        { open: window.innerWidth > 700 },
        h("summary", {}, "Colours and filters"),
        h(
          "div",
          { class: "line" },
          choice("colour", "colour", [["input", "input"], ["change", "change"], ["sign", "sign"]], state.colour, (colour) => store.set({ colour })),
          inputs,
          writers,
          choice("sign", "sign", [["both", "both"], ["plus", "+"], ["minus", "\u2212"]], state.sign, (sign) => store.set({ sign })),
          choice("change", "against the first", [["all", "all"], ["kept", "kept"], ["new", "new"], ["lost", "lost"]], state.change, (change) => store.set({ change })),
          this.sliders.from.element,
          this.sliders.to.element,
        ),
      ),
      h("div", { class: "line" }, this.key, h("span", { class: "spring" }), ...buttons.map(([text, click]) => h("button", { type: "button", click, title: `Save what is seen as ${text}` }, `\u2193 ${text}`))),
    );
  }

  /** Boxes to tick, each a letter of a text in the state. */
  private boxes(name: string, entries: [string, string, string][], key: "inputs" | "writers"): HTMLElement {
    const { store } = this;
    const boxes = entries.map(([letter, label, colour]) => {
      const set = (on: boolean): void => {
        const kept = entries.map(([of]) => of).filter((of) => (of === letter ? on : store.state[key].includes(of)));
        store.set({ [key]: kept.join("") });
      };
      const box = tick(label, store.state[key].includes(letter), set);
      if (colour !== "") box.classList.add(`swatch-${colour}`);
      return box;
    });
    return h("fieldset", { class: "choice" }, h("legend", {}, name), ...boxes);
  }

  /** Goes through the circuits one by one, or stops doing so. */
  private play(button: HTMLElement): void {
    const stop = (): void => {
      clearInterval(this.playing);
      this.playing = 0;
      button.textContent = "\u25b6 play";
    };
    if (this.playing) return stop();
    const last = this.run.circuits.stops.length - 1;
    if (stopOf(this.run, this.store.state.stop) === last) this.store.set({ stop: 0 });
    button.textContent = "\u2016 pause";
    this.playing = window.setInterval(() => {
      const next = stopOf(this.run, this.store.state.stop) + 1;
      if (next > last || !this.element.isConnected) return stop();
      this.store.set({ stop: next });
    }, Math.max(80, Math.min(700, 12_000 / (last + 1))));
  }

  private update(state: State): void {
    const { run } = this;
    const index = stopOf(run, state.stop);
    const stop = run.circuits.stops[index];
    const most = run.circuits.stops.reduce((most, of) => Math.max(most, of.edges.length), 1);
    const layers = Math.max(0, this.layout.layers - 1);
    this.sliders.stop.set(index, run.circuits.stops.length - 1);
    this.sliders.top.set(state.top || most, most);

    this.sliders.from.set(state.from, layers);
    this.sliders.to.set(state.to < 0 ? layers : state.to, layers);
    const every = allEdges(run, index, state.top);
    const edges = filtered(every, state);
    this.largest = every.reduce((most, edge) => Math.max(most, Math.abs(edge.score)), 0);
    this.sliders.least.set(state.least, 1000);
    this.main.update(edges, this.shares(stop), state);
    this.caption.textContent = this.title(stop, every, edges);
    this.element.classList.toggle("side", state.side);
    if (state.side) {
      const first = filtered(allEdges(run, 0, state.top), state);
      this.other.update(first, this.shares(run.circuits.stops[0]), { ...state, colour: state.colour === "change" ? "input" : state.colour });
      this.otherCaption.textContent = this.title(run.circuits.stops[0], first, first);
    }
    this.inspector.replaceChildren(...this.inspect(state, every, edges));
    this.showKey(state);
  }

  /** The nodes' scores as shares of the largest. */
  private shares(stop: Stop): Map<string, number> {
    const sums = nodeScores(this.run, stop);
    const largest = [...sums.values()].reduce((most, of) => Math.max(most, of.writes + of.reads), 0);
    return new Map([...sums].map(([name, of]) => [name, largest > 0 ? (of.writes + of.reads) / largest : 0]));
  }

  private title(stop: Stop, every: Edge[], edges: Edge[]): string {
    const own = every.filter((edge) => edge.change !== "lost").length;
    const what = stop.label === "before" || stop.label === "after" ? `${stop.label} tuning` : stop.label;
    const shown = edges.filter((edge) => edge.change !== "lost").length;
    return `${what}: ${count(shown)} of ${count(own)} edges shown`;
  }

  private showKey({ colour }: State): void {
    const keys: Record<State["colour"], [string, string][]> = {
      // The boxes to tick have them.
      input: [],
      change: [["kept", "kept"], ["new", "new"], ["lost", "lost"]],
      sign: [["plus", "raises the metric"], ["minus", "lowers it"]],
    };
    this.key.replaceChildren(...keys[colour].map(([of, name]) => h("li", { class: `swatch-${of}` }, name)));
  }

  private inspect(state: State, every: Edge[], edges: Edge[]): HTMLElement[] {
    if (state.node === "") return this.overview(state, every, edges);
    const into = edges.filter((edge) => edge.node === state.node);
    const out = edges.filter((edge) => edge.writer === state.node);
    return [
      h("h3", {}, state.node, h("button", { type: "button", class: "close", title: "Let go of this node", click: () => this.store.set({ node: "" }) }, "\u00d7")),
      h("h4", {}, `Reads from ${into.length}`),
      this.list(into, (edge) => edge.writer, (edge) => edge.reader.slice(edge.node.length + 1)),
      h("h4", {}, `Writes to ${out.length}`),
      this.list(out, (edge) => edge.node, (edge) => edge.reader.slice(edge.node.length + 1)),
      h("p", { class: "note" }, h("a", { href: "#nodes" }, "more on this node below")),
    ];
  }

  private overview(state: State, every: Edge[], edges: Edge[]): HTMLElement[] {
    const stop = this.run.circuits.stops[stopOf(this.run, state.stop)];
    const first = reference(this.run) as Stop;
    const of = (change: Edge["change"]): number => every.filter((edge) => edge.change === change).length;
    const nodes = new Set(every.filter((edge) => edge.change !== "lost").flatMap((edge) => [edge.writer, edge.node]));
    const bootstrap = stop.label === "before" ? this.run.summary?.bootstrap_before : stop.label === "after" ? this.run.summary?.bootstrap_after : undefined;
    const facts: [string, string][] = [
      ["nodes", count(nodes.size)],
      ["kept", count(of("kept"))],
      ["new", count(of("new"))],
      ["lost", count(of("lost"))],
      [`overlap with ${first.label}`, jaccard(stop.edges, first.edges).toFixed(3)],
      ...(bootstrap ? ([["overlap with resamples", bootstrap.overlap.toFixed(3)]] as [string, string][]) : []),
    ];
    return [
      h("dl", {}, ...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
      h("h4", {}, "Strongest edges shown"),
      this.list(edges.slice().sort((a, b) => Math.abs(b.score) - Math.abs(a.score)).slice(0, 12), (edge) => edge.writer, (edge) => `\u2192 ${edge.reader}`),
      h("p", { class: "note" }, "Choose a node for what it reads and writes; arrow keys go from node to node."),
    ];
  }

  /** Edges with their scores as bars. */
  private list(edges: Edge[], name: (edge: Edge) => string, port: (edge: Edge) => string): HTMLElement {
    const largest = edges.reduce((most, edge) => Math.max(most, Math.abs(edge.score)), 0) || 1;
    const line = (edge: Edge): HTMLElement => {
      const bar = h("span", { class: `bar ${edge.score < 0 ? "minus" : "plus"}` });
      bar.style.width = `${(100 * Math.abs(edge.score)) / largest}%`;
      const score = edge.error === null ? signed(edge.score) : estimate(edge.score, edge.error);
      return h(
        "li",
        { class: edge.change },
        h("button", { type: "button", class: "link", click: () => this.store.set({ node: name(edge) }) }, name(edge)),
        h("span", { class: `port swatch-${edge.input}` }, port(edge)),
        h("span", { class: "score" }, score),
        h("span", { class: "track" }, bar),
      );
    };
    return edges.length > 0 ? h("ol", { class: "edge-list" }, ...edges.map(line)) : h("p", { class: "note" }, "none that is shown");
  }

  private table(): string {
    const index = stopOf(this.run, this.store.state.stop);
    const edges = filtered(allEdges(this.run, index, this.store.state.top), this.store.state);
    const head = ["circuit", "writer", "reader", "score", "standard_error", "resample_share", "rank", "change"];
    const label = this.run.circuits.stops[index].label;
    return csv([
      head,
      ...edges.map((edge) => [label, edge.writer, edge.reader, edge.score, edge.error ?? "", edge.share ?? "", edge.rank, edge.change]),
    ]);
  }
}

