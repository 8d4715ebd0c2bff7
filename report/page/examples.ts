// The panel of examples: those that changed most first, and of the chosen ones the tokens, the logit lens and
// the attention of a head, before tuning and after it.

import { attentionView } from "./attention";
import type { Example, Run } from "./data";
import { choice, h, select } from "./dom";
import { difference, token } from "./format";
import { legend, plot, type Line } from "./plot";
import type { State, Store } from "./state";
import { table } from "./table";

interface Pair {
  index: number;
  before: Example;
  after: Example | null;
  text: string;
  /** p(right) − p(wrong) at the first key. */
  from: number;
  to: number | null;
}

/** How many stand side by side. */
const MOST = 4;

function margin(example: Example): number {
  const lens = example.keys[0]?.lens;
  const last = lens?.[lens.length - 1];
  return last ? last.right.probability - last.wrong.probability : 0;
}

function pairs(run: Run): Pair[] {
  const after = run.observed.after?.examples ?? [];
  const all = (run.observed.before?.examples ?? []).map((before, index): Pair => ({
    index,
    before,
    after: after[index] ?? null,
    text: before.tokens.join(between(before.tokens)),
    from: margin(before),
    to: after[index] ? margin(after[index]) : null,
  }));
  const change = (pair: Pair): number => Math.abs((pair.to ?? pair.from) - pair.from);
  return all.sort((a, b) => change(b) - change(a) || a.index - b.index);
}

export function examplesPanel(run: Run, store: Store): HTMLElement | null {
  const all = pairs(run);
  if (all.length === 0) return null;
  const chosen = (state: State): Pair[] => {
    const wanted = state.example === "0" ? all.slice(0, 2).map((pair) => String(pair.index)) : state.example.split("-").filter(Boolean).map((part) => part.replace("x", ""));
    return wanted.flatMap((index) => all.filter((pair) => String(pair.index) === index)).slice(0, MOST);
  };
  const toggle = (pair: Pair): void => {
    const now = chosen(store.state).map((of) => of.index);
    const next = now.includes(pair.index) ? now.filter((index) => index !== pair.index) : [...now.slice(1 - MOST), pair.index];
    store.set({ example: next.map((index) => `x${index}`).join("-") || "x" });
  };
  const list = table<Pair>({
    columns: [
      {
        name: "example",
        value: (pair) => pair.text,
        cell: (pair) => h("button", { type: "button", class: "link text", "aria-pressed": String(chosen(store.state).includes(pair)), click: (event: Event) => { event.stopPropagation(); toggle(pair); } }, token(pair.text)),
      },
      { name: "before", about: "p(right) \u2212 p(wrong) at the first key", value: (pair) => pair.from, cell: (pair) => difference(pair.from), number: true },
      { name: "after", value: (pair) => pair.to ?? -2, cell: (pair) => (pair.to === null ? "" : difference(pair.to)), number: true },
      { name: "change", value: (pair) => Math.abs((pair.to ?? pair.from) - pair.from), cell: (pair) => (pair.to === null ? "" : difference(pair.to - pair.from)), number: true },
    ],
    text: (pair) => `${pair.text} ${pair.before.origin}`,
    choose: toggle,
    chosen: (pair) => chosen(store.state).includes(pair),
    sort: [3, true],
    search: "search examples",
  });
  list.set(all);
  const cards = h("div", { class: "cards" });
  const controls = h("div", { class: "controls line" });
  const element = h(
    "div",
    {},
    h("p", { class: "note" }, `The first ${all.length} held-out examples; p(right) \u2212 p(wrong) at the first key position. Choose up to ${MOST} to stand side by side.`),
    list.element,
    controls,
    cards,
  );
  const update = (state: State): void => {
    const heads = run.observed.before?.heads ?? [];
    const head = heads.includes(state.head) ? state.head : heads.includes(state.node) ? state.node : (heads[0] ?? "");
    controls.replaceChildren(
      legend([
        { label: "right, before", class: "right dashed" },
        { label: "right, after", class: "right" },
        { label: "wrong, before", class: "wrong dashed" },
        { label: "wrong, after", class: "wrong" },
      ]),
      ...(heads.length > 0
        ? [
            select("attention of", heads.map((name): [string, string] => [name, name]), head, (name) => store.set({ head: name })),
            choice("pattern", "as", [["matrix", "matrix"], ["lines", "lines"]], state.pattern, (pattern) => store.set({ pattern })),
          ]
        : []),
    );
    cards.replaceChildren(...chosen(state).map((pair) => card(pair, head, state)));
  };
  update(store.state);
  store.listen((state, changed) => {
    if (!element.isConnected) return;
    if (changed.has("example")) list.refresh();
    if (["example", "head", "pattern", "node"].some((key) => changed.has(key as keyof State))) update(state);
  });
  return element;
}

/** What stands between two tokens: nothing, but where a tokenizer's tokens are words a space. */
function between(tokens: string[]): string {
  return tokens.some((text) => /\s/.test(text)) ? "" : " ";
}

function card(pair: Pair, head: string, state: State): HTMLElement {
  const { before, after } = pair;
  return h(
    "article",
    { class: "card" },
    sentence(before),
    ...before.keys.slice(0, 3).map((key, index) => lens(pair, index, key.right, key.wrong)),
    before.keys.length > 3 ? h("p", { class: "note" }, `${before.keys.length - 3} further keys are not drawn`) : null,
    head === "" ? null : attentionView(before, after, head, state.pattern),
    h("p", { class: "note" }, before.origin),
  );
}

/** The tokens, with what the task marks and what is predicted. */
function sentence(example: Example): HTMLElement {
  const spans = Object.entries(example.spans);
  const keys = new Set(example.keys.map((key) => key.position));
  const tokens = example.tokens.map((text, position) => {
    const names = spans.filter(([, positions]) => positions.includes(position)).map(([name]) => name);
    const classes = ["token", keys.has(position) ? "predicted" : "", names.length > 0 ? "marked" : ""].join(" ");
    const about = [...names, ...(keys.has(position) ? ["predicted"] : [])].join(", ");
    return h("span", { class: classes, title: about === "" ? `token ${position}` : about }, token(text), names.length > 0 ? h("sub", {}, names.join(" ")) : null);
  });
  const space = between(example.tokens);
  return h("p", { class: "sentence" }, ...tokens.flatMap((element) => [element, space]));
}

/** Probabilities of right and wrong after each layer. */
function lens({ before, after }: Pair, key: number, right: string[], wrong: string[]): HTMLElement {
  const points = (example: Example, side: "right" | "wrong"): [number, number][] =>
    (example.keys[key]?.lens ?? []).map((of, index): [number, number] => [of.layer ?? index - 1, of[side].probability]);
  const of = (side: "right" | "wrong"): Line[] => [
    { label: `${side} before`, points: points(before, side), class: `${side} dashed` },
    ...(after ? [{ label: `${side} after`, points: points(after, side), class: side, dots: (before.keys[key]?.lens.length ?? 0) < 16 }] : []),
  ];
  const some = (answers: string[]): string => answers.slice(0, 3).map((answer) => `\u201c${token(answer)}\u201d`).join(" ") + (answers.length > 3 ? ` and ${answers.length - 3} more` : "");
  const lines = [...of("right"), ...(wrong.length > 0 ? of("wrong") : [])];
  const view = plot({
    title: `right ${some(right)}${wrong.length > 0 ? `, wrong ${some(wrong)}` : ""}: probability after each layer`,
    lines,
    x: (layer) => (layer < 0 ? "embedding" : `layer ${layer}`),
    tick: (layer) => (layer < 0 ? "emb" : `L${layer}`),
    includes: [0],
    height: 150,
  });
  return view.element;
}

