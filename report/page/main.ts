// Puts interactive panels in the place of the static ones.

import { circuitPanel } from "./circuit";
import { curvesPanel } from "./curves";
import { load, setting, type Data, type Run } from "./data";
import { choice, h, select } from "./dom";
import { examplesPanel } from "./examples";
import { faithfulnessPanel } from "./faithfulness";
import { figuresPanel } from "./figures";
import { count } from "./format";
import { nodesPanel } from "./nodes";
import { Store } from "./state";
import { sweepPanel } from "./sweep";
import { tablesPanel } from "./tables";

/** What a panel says where the run has nothing for it. */
const MISSING: Record<string, string> = {
  curves: "This run has no steps.",
  circuit: "This run has no circuit: its selector needs none.",
  nodes: "Nothing is known of this run's nodes.",
  edges: "This run has no circuit.",
  faithfulness: "This run's circuits weren't evaluated. [faithfulness] in an experiment asks for that.",
  examples: "This run looked at no examples. [report] in an experiment says at how many; a task without key positions has none.",
};

function fill(id: string, content: HTMLElement | null): void {
  const place = document.querySelector(`#${id} > .content`);
  place?.replaceChildren(content ?? h("p", { class: "empty" }, MISSING[id] ?? "There is nothing to show."));
}

function showRun(data: Data, store: Store): void {
  const index = data.runs[store.state.run] ? store.state.run : 0;
  const run = data.runs[index];
  fill("figures", figuresPanel(data, index));
  fill("curves", curvesPanel(run, store));
  fill("circuit", circuitPanel(run, store));
  fill("nodes", nodesPanel(run, store));
  fill("edges", tablesPanel(run, store));
  fill("faithfulness", faithfulnessPanel(run));
  fill("examples", examplesPanel(run, store));
  fill("settings", settings(run));
  document.getElementById("asked")?.replaceChildren(...asked(run));
}

/** What the run was asked, of which model, and how to repeat it. */
function asked(run: Run): HTMLElement[] {
  const model = run.provenance?.model;
  const options = Object.entries((run.config.task ?? {}) as Record<string, unknown>)
    .filter(([key, value]) => key !== "name" && (typeof value !== "object" || value === null) && String(value).length < 40)
    .map(([key, value]) => `${key} ${String(value)}`);
  const facts: [string, string, string?][] = [
    ["Task", setting(run, "task", "name"), options.slice(0, 5).join(", ")],
    [
      "Model",
      setting(run, "model", "path"),
      [
        model ? `${model.architecture}, ${model.layers} layers of ${model.heads} heads, width ${model.d_model}` : "",
        run.summary ? `${count(run.summary.parameters)} parameters` : "",
        run.weights ? `SHA-256 ${run.weights.slice(0, 12)}\u2026` : "",
      ]
        .filter((part) => part !== "")
        .join(", "),
    ],
    [
      "Discovery",
      run.provenance ? `${run.provenance.method}, ${run.provenance.metric}` : setting(run, "metric", "name"),
      run.provenance ? `${run.provenance.ablation} ablation at ${run.provenance.positions} positions, ${count(run.provenance.examples)} examples` : "",
    ],
    ["Tuning", setting(run, "selector", "name"), `${setting(run, "tuning", "optimizer")}, learning rate ${setting(run, "tuning", "lr")}, batches of ${setting(run, "tuning", "batch_size")}`],
    ["Seed", setting(run, "seed"), run.summary?.controls && run.summary.controls.seeds.length > 1 ? `and ${run.summary.controls.seeds.length - 1} more` : ""],
  ];
  const copy = h("button", { type: "button", click: () => copyText(run.command, copy) }, "copy");
  return [
    ...(run.description === "" ? [] : [h("p", { class: "lead" }, run.description)]),
    h("dl", { class: "facts" }, ...facts.map(([name, value, more]) => h("div", {}, h("dt", {}, name), h("dd", {}, value, more ? h("small", {}, more) : null)))),
    h("p", { class: "repeat" }, h("span", {}, "Repeat it with"), h("code", {}, run.command), copy),
  ];
}

function copyText(text: string, button: HTMLElement): void {
  const done = (word: string): void => {
    button.textContent = word;
    setTimeout(() => (button.textContent = "copy"), 1500);
  };
  // A page from a file share may not be let to the clipboard.
  (navigator.clipboard?.writeText(text) ?? Promise.reject(new Error("no clipboard"))).then(
    () => done("copied"),
    () => done("select it by hand"),
  );
}

function settings(run: Run): HTMLElement {
  const lines: HTMLElement[] = [];
  const add = (path: string, value: unknown): void => {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) {
      Object.entries(value).forEach(([key, inner]) => add(path === "" ? key : `${path}.${key}`, inner));
    } else {
      lines.push(h("div", {}, h("dt", {}, path), h("dd", {}, typeof value === "string" ? value : JSON.stringify(value))));
    }
  };
  add("", run.config);
  const files = Object.entries(run.inputs).map(([path, hash]) => h("div", {}, h("dt", {}, path), h("dd", {}, hash)));
  return h(
    "div",
    {},
    h("details", {}, h("summary", {}, `${lines.length} settings`), h("dl", { class: "settings" }, ...lines)),
    files.length > 0 ? h("details", {}, h("summary", {}, `SHA-256 of the ${files.length} files it read`), h("dl", { class: "settings wide" }, ...files)) : null,
  );
}

type Theme = "auto" | "light" | "dark";

/** Light, dark, or as the system says. It is kept where the browser lets a page keep something. */
function theme(): HTMLElement {
  let chosen: Theme = "auto";
  try {
    chosen = (localStorage.getItem("circuit-tuning-theme") as Theme | null) ?? "auto";
  } catch {
    // Not in every frame.
  }
  const set = (value: Theme): void => {
    document.documentElement.dataset.theme = value;
    try {
      localStorage.setItem("circuit-tuning-theme", value);
    } catch {
      // As above.
    }
  };
  document.documentElement.dataset.theme = chosen;
  return choice("theme", "theme", [["auto", "auto"], ["light", "light"], ["dark", "dark"]], chosen, set);
}

async function start(): Promise<void> {
  const data = await load();
  const store = new Store();
  const bar = h("div", { class: "bar-top" });
  if (data.runs.length > 1) {
    const options = data.runs.map((run, index): [string, string] => [String(index), run.name]);
    const chooser = select("run", options, String(store.state.run), (run) => store.set({ run: Number(run), stop: 0, node: "", top: 0 }));
    bar.append(chooser);
    store.listen((state) => {
      const element = chooser.querySelector("select");
      if (element) element.value = String(state.run);
    });
    fill("runs", sweepPanel(data, store));
  }
  bar.append(theme());
  document.getElementById("top")?.prepend(bar);
  showRun(data, store);
  store.listen((_, changed) => {
    if (changed.has("run")) showRun(data, store);
  });
  // The address is the state's: links go to their panels without it.
  document.addEventListener("click", (event) => {
    const link = (event.target as Element).closest<HTMLAnchorElement>('a[href^="#"]');
    const panel = link && document.getElementById(link.hash.slice(1));
    if (!panel) return;
    event.preventDefault();
    panel.scrollIntoView();
    panel.setAttribute("tabindex", "-1");
    panel.focus({ preventScroll: true });
  });
  document.documentElement.dataset.ready = "true";
}

start().catch((error: unknown) => {
  // The static page stays as it is.
  console.error(error);
  document.getElementById("top")?.append(h("p", { class: "empty" }, `The page stays as it is without a script: ${String(error)}`));
});
