// The drawing of a circuit as SVG. Edges of one colour and width are one path, so that thousands of them move
// with a slider; which edge is under the pointer is worked out here.

import { h, s } from "./dom";
import type { Edge } from "./edges";
import { estimate, percent, signed } from "./format";
import { bend, LEFT, pointOn, type Bend, type Layout, type Place } from "./layout";
import type { State } from "./state";

/** The drawing's own style: it goes along when the drawing is saved. Colours are the page's variables. */
export const STYLE = `
.edge{fill:none;stroke-linecap:round}
.edge.q{stroke:var(--q)}.edge.k{stroke:var(--k)}.edge.v{stroke:var(--v)}.edge.m{stroke:var(--m)}.edge.l{stroke:var(--l)}
.edge.plus{stroke:var(--plus)}.edge.minus{stroke:var(--minus)}
.edge.kept{stroke:var(--kept)}.edge.new{stroke:var(--new)}.edge.lost{stroke:var(--lost);stroke-dasharray:5 4}
.edge.dim{opacity:.1!important}.edge.hot{stroke:var(--ink);opacity:1}
.box{fill:var(--paper);stroke:var(--rule)}.used .box{stroke:var(--muted)}
.heat{fill:var(--heat);opacity:0}
.node text{fill:var(--faint);font-size:9.5px;text-anchor:middle;pointer-events:none}.used text{fill:var(--ink)}
.touched .box{stroke:var(--ink)}.selected .box{stroke:var(--accent);stroke-width:2.5}
.layer{fill:var(--muted);font-size:10px}.row{stroke:var(--grid)}
.node:focus{outline:none}.node:focus .box{stroke:var(--accent);stroke-width:2.5}
`;

const WIDTHS = [0.7, 1.1, 1.7, 2.5, 3.5, 4.8];

const LABELS = { q: "query", k: "key", v: "value", m: "MLP input", l: "logits" };

export class Drawing {
  readonly element: HTMLElement;
  readonly svg: SVGSVGElement;
  private edgesLayer = s("g", {});
  private hot = s("path", { class: "edge hot" });
  private nodes = new Map<string, SVGGElement>();
  private tip = h("div", { class: "tip", hidden: true });
  /** Each edge's curve, and how it is written. */
  private bends = new Map<number, { curve: Bend; text: string } | null>();
  /** What each node's element says now. */
  private said = new Map<string, string>();
  private shown: Edge[] = [];

  constructor(
    private layout: Layout,
    label: string,
    private choose: (node: string) => void,
  ) {
    this.svg = s("svg", {
      viewBox: `0 0 ${layout.width} ${layout.height}`,
      role: "group",
      "aria-label": label,
      "font-family": "system-ui, sans-serif",
    });
    this.svg.style.minWidth = `${Math.min(layout.width, 0.6 * layout.width + 80)}px`;
    this.svg.style.maxWidth = `${(layout.layers > 12 ? 1.05 : 1.5) * layout.width}px`;
    this.svg.append(s("style", {}, STYLE));
    layout.rows.forEach((y, layer) => {
      this.svg.append(
        s("path", { class: "row", d: `M${LEFT - 4} ${y}H${layout.width - 8}` }),
        s("text", { class: "layer", x: 2, y: y + 3.5 }, `L${layer}`),
      );
    });
    this.svg.append(this.edgesLayer, this.hot);
    for (const place of layout.places.values()) this.addNode(place);
    this.element = h("div", { class: "drawing" }, this.svg, this.tip);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.unpoint());
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.svg.addEventListener("click", (event) => {
      const node = (event.target as Element).closest<SVGGElement>(".node");
      this.choose(node?.dataset.name ?? "");
    });
  }

  private addNode(place: Place): void {
    const { name, kind, layer, index, x, y, w, h: half } = place;
    const label = kind === "head" ? `${layer}.${index}` : kind === "mlp" ? this.mlpLabel(place) : kind === "kv" ? "" : name;
    const box = { x: x - w, y: y - half, width: 2 * w, height: 2 * half, rx: kind === "head" ? 5 : 2.5 };
    const group = s(
      "g",
      { class: `node ${kind}`, tabindex: -1, role: "button", "aria-label": name, "data-name": name },
      s("rect", { class: "box", ...box }),
      s("rect", { class: "heat", ...box }),
      s("text", { x, y: y + 3.5 }, label),
      s("title", {}, name),
    );
    this.nodes.set(name, group);
    this.svg.append(group);
  }

  private mlpLabel({ name, layer, index }: Place): string {
    return name.split(".").length > 2 ? `m${index}` : `m${layer}`;
  }

  private bendOf(edge: Edge): { curve: Bend; text: string } | null {
    let found = this.bends.get(edge.id);
    if (found === undefined) {
      const curve = bend(this.layout, edge.writer, edge.reader);
      const [ax, ay, ...rest] = (curve ?? []).map((value) => Math.round(10 * value) / 10);
      found = curve && { curve, text: `M${ax} ${ay}C${rest.join(" ")}` };
      this.bends.set(edge.id, found);
    }
    return found;
  }

  /** Draws these edges; `scores` are the nodes', from 0 to 1. */
  update(edges: Edge[], scores: Map<string, number>, state: State): void {
    this.shown = edges;
    const largest = edges.reduce((most, edge) => Math.max(most, Math.abs(edge.score)), 0) || 1;
    const paths = new Map<string, string[]>();
    const used = new Set<string>();
    const touched = new Set<string>();
    for (const edge of edges) {
      const bent = this.bendOf(edge);
      if (!bent) continue;
      used.add(edge.writer).add(edge.node);
      const touches = edge.writer === state.node || edge.node === state.node;
      if (touches) touched.add(edge.writer).add(edge.node);
      const dim = state.node !== "" && !touches ? " dim" : "";
      const width = Math.min(WIDTHS.length - 1, Math.floor((Math.abs(edge.score) / largest) * WIDTHS.length));
      const colour = state.colour === "input" ? edge.input : state.colour === "sign" ? (edge.score < 0 ? "minus" : "plus") : edge.change;
      const key = `${width}|${colour}${dim}`;
      const found = paths.get(key);
      if (found) found.push(bent.text);
      else paths.set(key, [bent.text]);
    }
    const order = [...paths.keys()].sort((a, b) => Number(b.endsWith("dim")) - Number(a.endsWith("dim")) || Number(a[0]) - Number(b[0]));
    this.edgesLayer.replaceChildren(
      ...order.map((key) => {
        const [width, classes] = key.split("|");
        const opacity = 0.42 + 0.1 * Number(width);
        return s("path", { class: `edge ${classes}`, "stroke-width": WIDTHS[Number(width)], opacity, d: paths.get(key)?.join("") });
      }),
    );
    this.hot.setAttribute("d", "");
    for (const [name, group] of this.nodes) {
      const heat = (0.55 * (used.has(name) ? (scores.get(name) ?? 0) : 0)).toFixed(2);
      const classes = [used.has(name) ? "used" : "", touched.has(name) ? "touched" : "", name === state.node ? "selected" : ""];
      const kind = this.layout.places.get(name)?.kind ?? "";
      const text = ["node", kind, ...classes, heat].join(" ");
      if (this.said.get(name) === text) continue;
      this.said.set(name, text);
      group.setAttribute("class", ["node", kind, ...classes].filter(Boolean).join(" "));
      (group.children[1] as SVGRectElement).style.opacity = heat;
      group.setAttribute("tabindex", name === (state.node || "logits") ? "0" : "-1");
    }
  }

  /** Moves the focus from node to node with the arrow keys; Enter chooses, Escape lets go. */
  private key(event: KeyboardEvent): void {
    const name = (event.target as Element).closest<SVGGElement>(".node")?.dataset.name;
    const place = name === undefined ? undefined : this.layout.places.get(name);
    if (!place) return;
    if (event.key === "Enter" || event.key === " ") this.choose(place.name);
    else if (event.key === "Escape") this.choose("");
    else {
      const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!direction) return;
      this.nodes.get(this.beside(place, direction)?.name ?? place.name)?.focus();
    }
    event.preventDefault();
  }

  /** The nearest node in a direction. */
  private beside(from: Place, [right, down]: number[]): Place | null {
    let best: Place | null = null;
    let least = Infinity;
    for (const place of this.layout.places.values()) {
      const [x, y] = [place.x - from.x, place.y - from.y];
      const along = x * right + y * down;
      const aside = Math.abs(x * down) + Math.abs(y * right);
      if (along <= 1 || place.kind === "kv") continue;
      const distance = along + 2.5 * aside;
      if (distance < least) [best, least] = [place, distance];
    }
    return best;
  }

  /** Shows the edge under the pointer. */
  private point(event: PointerEvent): void {
    const box = this.svg.getBoundingClientRect();
    const scale = this.layout.width / box.width;
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    let best: Edge | null = null;
    let least = 7 * Math.max(1, scale);
    if (!(event.target as Element).closest(".node")) {
      for (const edge of this.shown) {
        const curve = this.bendOf(edge)?.curve;
        if (!curve || y > curve[1] + 8 || y < curve[7] - 8) continue;
        for (let step = 0; step <= 24; step += 1) {
          const [px, py] = pointOn(curve, step / 24);
          const distance = Math.hypot(px - x, py - y);
          if (distance < least) [best, least] = [edge, distance];
        }
      }
    }
    if (!best) {
      this.unpoint();
      return;
    }
    this.hot.setAttribute("d", this.bendOf(best)?.text ?? "");
    this.hot.setAttribute("stroke-width", "2.5");
    this.tip.replaceChildren(...describe(best));
    this.tip.hidden = false;
    const own = this.element.getBoundingClientRect();
    const left = Math.min(event.clientX - own.left + 14, own.width - 230);
    this.tip.style.transform = `translate(${Math.max(0, left + this.element.scrollLeft)}px, ${event.clientY - own.top + 14}px)`;
  }

  private unpoint(): void {
    this.tip.hidden = true;
    this.hot.setAttribute("d", "");
  }

  /** The drawing as a file: the colours of the page as it is. */
  file(caption: string): string {
    const copy = this.svg.cloneNode(true) as SVGSVGElement;
    const style = getComputedStyle(document.documentElement);
    const resolved = STYLE.replaceAll(/var\((--[a-z]+)\)/g, (_, name: string) => style.getPropertyValue(name).trim());
    copy.querySelector("style")?.replaceChildren(resolved);
    copy.removeAttribute("style");
    copy.querySelectorAll("[tabindex]").forEach((node) => node.removeAttribute("tabindex"));
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", String(this.layout.width));
    copy.setAttribute("height", String(this.layout.height));
    const paper = s("rect", { width: "100%", height: "100%", fill: style.getPropertyValue("--paper").trim() });
    copy.prepend(s("title", {}, caption), paper);
    return new XMLSerializer().serializeToString(copy);
  }
}

/** What an edge is, in words. */
export function describe(edge: Edge): HTMLElement[] {
  const score = edge.error === null ? signed(edge.score) : estimate(edge.score, edge.error);
  const share = edge.share === null ? [] : [h("span", {}, `in ${percent(edge.share, 0)} of resampled circuits`)];
  return [
    h("strong", {}, `${edge.writer} \u2192 ${edge.reader}`),
    h("span", {}, `score ${score}`),
    h("span", {}, `rank ${edge.rank}, ${LABELS[edge.input]}, ${edge.change}`),
    ...share,
  ];
}
