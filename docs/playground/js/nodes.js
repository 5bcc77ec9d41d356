// Which nodes of a tree are seen, where they stand, and what they are called.
//
// A node is { parent, unit, sign, outcome, ... }; the root comes first, children after parents.
// `split` lists the numbers of the nodes that the reader has split.

/** The numbers of the children of each node. */
export function childrenOf(nodes) {
  const children = nodes.map(() => []);
  nodes.forEach(({ parent }, i) => parent >= 0 && children[parent].push(i));
  return children;
}

/** Of the nodes that a state says are split, those that can be: the root, children of split ones. */
export function tidySplit(nodes, split) {
  const wanted = new Set(split), kept = [];
  nodes.forEach(({ outcome, parent }, i) => {
    if (outcome === "split" && wanted.has(i) && (parent < 0 || kept.includes(parent))) kept.push(i);
  });
  return kept;
}

/** The nodes that are seen: the root, and the children of split nodes. */
export function visible(nodes, split) {
  return nodes.map((_, i) => i).filter((i) => i === 0 || split.includes(nodes[i].parent));
}

/** What is known: the open leaves, the examples seen, and whether all leaves are proved. */
export function progress(nodes, split) {
  const seen = visible(nodes, split);
  const open = seen.filter((i) => nodes[i].outcome === "split" && !split.includes(i));
  const examples = seen.filter((i) => nodes[i].outcome === "example");
  return { seen, open, examples, proved: !open.length && !examples.length };
}

/** Places `[column, depth]`: leaves from left to right, parents above the middle of children. */
export function layout(nodes, split) {
  const children = childrenOf(nodes), places = new Map();
  let leaves = 0;
  const lay = (i, depth) => {
    const own = split.includes(i) ? children[i] : [];
    own.forEach((j) => lay(j, depth + 1));
    const column = own.length ? own.reduce((sum, j) => sum + places.get(j)[0], 0) / own.length
      : leaves++;
    places.set(i, [column, depth]);
  };
  lay(0, 0);
  return places;
}

/** "unit 3 of layer 2", from its number among all hidden units. */
export function unitName(unit, sizes) {
  let layer = 1;
  while (unit >= sizes[layer]) unit -= sizes[layer++];
  return `unit ${unit + 1} of layer ${layer}`;
}

/** The splits from the root to a node: `[{ unit, sign }]`. */
export function path(nodes, i) {
  const { parent, unit, sign } = nodes[i];
  return parent < 0 ? [] : [...path(nodes, parent), { unit, sign }];
}
