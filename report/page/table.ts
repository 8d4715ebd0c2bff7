// A table that is sorted by its heads and searched; only so many lines are shown at once.

import { h } from "./dom";
import { count } from "./format";

export interface Column<T> {
  name: string;
  about?: string;
  /** What it is sorted by. */
  value: (of: T) => number | string;
  /** What it shows; the value without it. */
  cell?: (of: T) => HTMLElement | string;
  number?: boolean;
}

export interface Options<T> {
  columns: Column<T>[];
  /** The lines under which a search finds a line. */
  text: (of: T) => string;
  choose?: (of: T) => void;
  chosen?: (of: T) => boolean;
  /** The column it is sorted by first, and whether the largest come first. */
  sort: [number, boolean];
  search: string;
}

export interface Table<T> {
  element: HTMLElement;
  set(lines: T[]): void;
  refresh(): void;
}

const SHOWN = 15;

export function table<T>(options: Options<T>): Table<T> {
  let lines: T[] = [];
  let [by, down] = options.sort;
  let all = false;
  let words = "";
  const body = h("tbody", {});
  const heads = options.columns.map((column, index) => {
    const sort = (): void => {
      down = by === index ? !down : column.number === true;
      by = index;
      show();
    };
    const button = h("button", { type: "button", class: "head", title: column.about ?? "", click: sort }, column.name);
    return h("th", { scope: "col", class: column.number ? "number" : "" }, button);
  });
  const search = h("input", {
    type: "search",
    placeholder: options.search,
    "aria-label": options.search,
    input: () => {
      words = search.value.trim().toLowerCase();
      show();
    },
  });
  const more = h("button", {
    type: "button",
    class: "more",
    click: () => {
      all = !all;
      show();
    },
  });

  const show = (): void => {
    const found = lines.filter((line) => words.split(/\s+/).every((word) => options.text(line).toLowerCase().includes(word)));
    const { value } = options.columns[by];
    const compare = (a: T, b: T): number => {
      const [x, y] = [value(a), value(b)];
      return typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
    };
    const sorted = found.slice().sort((a, b) => (down ? -1 : 1) * compare(a, b));
    heads.forEach((head, index) => head.setAttribute("aria-sort", index !== by ? "none" : down ? "descending" : "ascending"));
    body.replaceChildren(...(all ? sorted : sorted.slice(0, SHOWN)).map(line));
    more.hidden = sorted.length <= SHOWN;
    more.textContent = all ? `show the first ${SHOWN}` : `show all ${count(sorted.length)}`;
  };
  const line = (of: T): HTMLElement =>
    h(
      "tr",
      { class: options.chosen?.(of) ? "chosen" : "", click: options.choose ? () => options.choose?.(of) : undefined },
      ...options.columns.map((column) =>
        h("td", { class: column.number ? "number" : "" }, column.cell ? column.cell(of) : String(column.value(of))),
      ),
    );
  return {
    element: h(
      "div",
      { class: "data-table" },
      search,
      h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ...heads)), body)),
      more,
    ),
    set(next) {
      lines = next;
      show();
    },
    refresh: show,
  };
}
