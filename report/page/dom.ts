// Making elements. Text goes in as text, never as markup.

type Value = string | number | boolean | null | undefined | ((event: any) => void);
type Child = Node | string | null | undefined;

function fill(element: Element, attributes: Record<string, Value>, children: Child[]): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "value") (element as HTMLInputElement).value = String(value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children) {
    if (child !== null && child !== undefined) element.append(child);
  }
}

export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, Value> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  fill(element, attributes, children);
  return element;
}

export function s<K extends keyof SVGElementTagNameMap>(
  tag: K,
  attributes: Record<string, Value> = {},
  ...children: Child[]
): SVGElementTagNameMap[K] {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  fill(element, attributes, children);
  return element;
}

/** A choice of one of a few as a row of buttons, by keyboard a group of radio buttons. */
export function choice<T extends string>(
  name: string,
  label: string,
  options: [T, string][],
  chosen: T,
  choose: (value: T) => void,
): HTMLElement {
  const id = `choice-${name}`;
  return h(
    "fieldset",
    { class: "choice" },
    h("legend", {}, label),
    ...options.map(([value, text]) => {
      const input = h("input", { type: "radio", name: id, value, id: `${id}-${value}`, change: () => choose(value) });
      input.checked = value === chosen;
      return h("label", {}, input, h("span", {}, text));
    }),
  );
}

/** A box to tick. */
export function tick(label: string, ticked: boolean, set: (value: boolean) => void): HTMLElement {
  const input = h("input", { type: "checkbox", change: () => set(input.checked) });
  input.checked = ticked;
  return h("label", { class: "tick" }, input, label);
}

/** One of many. */
export function select(
  label: string,
  options: [string, string][],
  chosen: string,
  choose: (value: string) => void,
): HTMLElement {
  const element = h(
    "select",
    { change: () => choose(element.value) },
    ...options.map(([value, text]) => h("option", { value }, text)),
  );
  element.value = chosen;
  return h("label", { class: "select" }, h("span", {}, label), element);
}

/** A slider with its value beside it. */
export interface Slider {
  element: HTMLElement;
  set(value: number, most: number): void;
}

export function slider(
  label: string,
  shown: (value: number) => string,
  change: (value: number) => void,
  least = 0,
): Slider {
  const output = h("output", {});
  const input = h("input", { type: "range", min: least, max: 1, step: 1, "aria-label": label });
  const show = (): void => {
    const text = shown(Number(input.value));
    output.textContent = text;
    input.setAttribute("aria-valuetext", text);
  };
  input.addEventListener("input", () => {
    show();
    change(Number(input.value));
  });
  return {
    element: h("label", { class: "slider" }, h("span", {}, label), input, output),
    set(value, most) {
      input.max = String(most);
      input.value = String(value);
      show();
    },
  };
}

/** Hands a file to whoever looks at the page. */
export function download(name: string, type: string, text: string): void {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Lines of cells as CSV (RFC 4180). */
export function csv(lines: (string | number)[][]): string {
  const cell = (value: string | number): string => {
    const text = String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return lines.map((line) => line.map(cell).join(",") + "\r\n").join("");
}
