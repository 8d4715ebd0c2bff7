// The attention of a head over an example, before tuning and after it: as a matrix, or as lines from each token
// to those it looks at.

import type { Example } from "./data";
import { h, s } from "./dom";
import { percent, token } from "./format";

/** Examples of more tokens have their pictures one over the other. */
const LONG = 24;

export function attentionView(before: Example, after: Example | null, head: string, form: "matrix" | "lines"): HTMLElement {
  const draw = form === "matrix" ? matrix : lines;
  const views = [["before", before], ["after", after]] as const;
  const found = views.flatMap(([when, example]) => {
    const weights = example?.attention?.[head];
    return example && weights ? [h("figure", {}, h("figcaption", {}, `${head} ${when}`), draw(example, weights))] : [];
  });
  return found.length > 0
    ? h("div", { class: before.tokens.length > LONG ? "attention long" : "attention" }, ...found)
    : h("p", { class: "note" }, "Of this example no attention was kept; report.megabytes says how much is.");
}

/** The weight of a query for a key: the lower triangle, row by row, 255 for 1. */
function weight(weights: number[], query: number, key: number): number {
  return (weights[(query * (query + 1)) / 2 + key] ?? 0) / 255;
}

function shortened(text: string): string {
  const shown = token(text).trim() || "\u2423";
  return shown.length > 12 ? `${shown.slice(0, 11)}\u2026` : shown;
}

/** The rows that predict a key. */
function predicting(example: Example): Set<number> {
  return new Set(example.keys.map((key) => key.position - 1));
}

function matrix(example: Example, weights: number[]): SVGSVGElement {
  const { tokens } = example;
  const cell = 13;
  const [left, top] = [74, 66];
  const size = tokens.length * cell;
  const rows = predicting(example);
  const picture = s("svg", { viewBox: `0 0 ${left + size + 34} ${top + size + 4}`, role: "img", "aria-label": "attention, rows look at columns" });
  picture.style.maxWidth = `${1.35 * (left + size + 34)}px`;
  tokens.forEach((text, index) => {
    const middle = index * cell + cell / 2;
    picture.append(
      s("text", { x: left - 5, y: top + middle + 3.5, "text-anchor": "end", class: rows.has(index) ? "key" : "" }, shortened(text)),
      s("text", { transform: `translate(${left + middle + 3.5} ${top - 5}) rotate(-60)` }, shortened(text)),
    );
    for (let key = 0; key <= index; key += 1) {
      const value = weight(weights, index, key);
      const rect = s("rect", { class: "cell plus", x: left + key * cell + 0.5, y: top + index * cell + 0.5, width: cell - 1, height: cell - 1 },
        s("title", {}, `${token(text)} \u2192 ${token(tokens[key])}: ${percent(value)}`));
      rect.style.fillOpacity = String(0.04 + 0.96 * value);
      picture.append(rect);
    }
  });
  return picture;
}

function lines(example: Example, weights: number[]): SVGSVGElement {
  const { tokens } = example;
  const row = 15;
  const [left, right, width] = [84, 176, 260];
  const rows = predicting(example);
  const y = (index: number): number => index * row + 12;
  const picture = s("svg", { viewBox: `0 0 ${width} ${tokens.length * row + 8}`, role: "img", "aria-label": "attention, tokens on the left look at those on the right" });
  picture.style.maxWidth = `${1.35 * width}px`;
  const groups: SVGGElement[] = [];
  const show = (chosen: Set<number>): void => groups.forEach((group, index) => group.classList.toggle("shown", chosen.has(index)));
  tokens.forEach((_, query) => {
    const group = s("g", { class: "looks" });
    for (let key = 0; key <= query; key += 1) {
      const value = weight(weights, query, key);
      if (value < 0.01) continue;
      group.append(s("path", { d: `M${left + 4} ${y(query) - 4}L${right - 4} ${y(key) - 4}`, "stroke-width": 0.5 + 3.5 * value, opacity: 0.15 + 0.85 * value },
        s("title", {}, `${token(tokens[query])} \u2192 ${token(tokens[key])}: ${percent(value)}`)));
    }
    groups.push(group);
    picture.append(group);
  });
  tokens.forEach((text, index) => {
    const own = new Set([index]);
    picture.append(
      s("text", {
        x: left, y: y(index), "text-anchor": "end", class: rows.has(index) ? "key" : "", tabindex: 0,
        pointerenter: () => show(own), pointerleave: () => show(rows), focus: () => show(own), blur: () => show(rows),
      }, shortened(text)),
      s("text", { x: right, y: y(index) }, shortened(text)),
    );
  });
  show(rows);
  return picture;
}
