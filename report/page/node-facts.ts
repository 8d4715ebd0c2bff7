// What is known of single nodes beside their edges: direct effects, where heads look, how far rows moved.

import type { Observed, Run } from "./data";
import { inputOf } from "./names";

export interface Facts {
  effectBefore?: number;
  effectAfter?: number;
  /** How far all its rows moved, as a share of their norm. */
  moved?: number;
}

export interface Part {
  /** `q`, `k`, `v`, `in`, `gate`, `up` or `out`. */
  part: string;
  moved: number;
  norm: number;
}

/** The node and the part of an owner's name: `head.1.2.q`, `mlp.0 in`, `head.1.2 out`. */
function ownerOf(owner: string): { node: string; part: string } {
  const [name, part] = owner.split(" ");
  const { node, port } = inputOf(name);
  return { node, part: part ?? port };
}

export function parts(run: Run, name: string): Part[] {
  const movements = run.observed.after?.movements ?? [];
  return movements.flatMap(({ owner, moved, norm }) => {
    const { node, part } = ownerOf(owner);
    return node === name ? [{ part, moved, norm }] : [];
  });
}

export function facts(run: Run): { hasEffects: boolean; hasMovements: boolean; of: (name: string) => Facts } {
  const effects = (observed: Observed | null): Map<string, number> =>
    new Map((observed?.nodes ?? []).map(({ node, effect }) => [node, effect]));
  const [before, after] = [effects(run.observed.before), effects(run.observed.after)];
  const sums = new Map<string, { moved: number; norm: number }>();
  for (const { owner, moved, norm } of run.observed.after?.movements ?? []) {
    const { node } = ownerOf(owner);
    const sum = sums.get(node) ?? { moved: 0, norm: 0 };
    sums.set(node, { moved: sum.moved + moved ** 2, norm: sum.norm + norm ** 2 });
  }
  return {
    hasEffects: before.size > 0,
    hasMovements: sums.size > 0,
    of: (name) => {
      const sum = sums.get(name);
      return {
        effectBefore: before.get(name),
        effectAfter: after.get(name),
        moved: sum && sum.norm > 0 ? Math.sqrt(sum.moved / sum.norm) : undefined,
      };
    },
  };
}
