// Numbers as text.

const MINUS = "\u2212";

/** Four significant digits. */
export function number(value: number | string | null | undefined): string {
  if (value === null || value === undefined) return "";
  if (typeof value === "string") return value;
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size === 0) return "0";
  const text =
    size >= 1e-3 && size < 1e6
      ? value.toFixed(Math.min(6, Math.max(0, 3 - Math.floor(Math.log10(size)))))
      : value.toExponential(2);
  return text.replaceAll("-", MINUS);
}

/** Three significant digits: for axes and tight places. */
export function short(value: number): string {
  const size = Math.abs(value);
  if (size === 0) return "0";
  const text =
    size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(1).replace("e+", "e");
  return text.replaceAll("-", MINUS);
}

export function signed(value: number): string {
  return value > 0 ? `+${number(value)}` : number(value);
}

export function percent(share: number, digits = 1): string {
  return `${(100 * share).toFixed(digits)}\u2009%`;
}

/** A number with its digits in groups. */
export function count(value: number): string {
  return String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

/** A number and its uncertainty, of which two digits count. */
export function estimate(mean: number | string | undefined, margin?: number | string): string {
  if (mean === undefined) return "";
  if (margin === undefined) return number(mean);
  const [value, width] = [finite(mean), finite(margin)];
  if (value === null || width === null || width <= 0) return `${number(mean)} \u00b1 ${number(margin)}`;
  const digits = 1 - Math.floor(Math.log10(width));
  if (digits > 6 || digits < -3) return `${value.toExponential(2)} \u00b1 ${width.toExponential(1)}`.replaceAll("-", MINUS);
  // What rounds to 0 has no sign.
  const shown = (of: number): string => of.toFixed(Math.max(0, digits)).replace(/^-(?=0\.?0*$)/, "").replaceAll("-", MINUS);
  return `${shown(value)} \u00b1 ${shown(width)}`;
}

/** Three decimals and a sign: differences of probabilities. */
export function difference(value: number): string {
  const text = value.toFixed(3).replaceAll("-", MINUS);
  return value > 0 ? `+${text}` : text;
}

export function seconds(value: number): string {
  return value < 90 ? `${value.toFixed(1)} s` : value < 5400 ? `${(value / 60).toFixed(1)} min` : `${(value / 3600).toFixed(1)} h`;
}

/** A token with its spaces and line ends to be seen. */
export function token(text: string): string {
  return text.replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5");
}

/** A figure that may be text where it isn't finite. */
export function finite(value: number | string | null | undefined): number | null {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}
