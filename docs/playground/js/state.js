// The state of a component as text, for a link: "play-train?p=2&x=0.4,0.3".
// What a component has no use for is not in its state, and not in its link.

const NUMBERS = { gamma: "g", lam: "l", kB: "k", epoch: "e", selected: "u", c: "c",
  tree: "t", node: "n" };
const PLACES = 4; // decimals of a coordinate: a ten-thousandth of the picture

/** The number with as many decimals as a link keeps. */
export function rounded(number) {
  return Number(number.toFixed(PLACES));
}

/** What stands behind the # of a link. */
export function write(id, state) {
  const parts = [];
  if (state.p) parts.push(`p=${state.p === Infinity ? "inf" : state.p}`);
  if (state.x) parts.push(`x=${state.x.map(rounded)}`);
  for (const [name, letter] of Object.entries(NUMBERS)) {
    if (state[name] !== undefined) parts.push(`${letter}=${rounded(state[name])}`);
  }
  if (state.steps?.length) parts.push(`s=${rows(state.steps)}`);
  if (state.units) parts.push(`w=${rows(state.units)}`);
  if (state.split?.length) parts.push(`o=${state.split.join(".")}`);
  return `${id}?${parts.join("&")}`;
}

/** The state in a link, over `state`; null if the link is for another component or is no state. */
export function read(id, hash, state) {
  const [name, query] = decodeURIComponent(hash.replace(/^#/, "")).split("?");
  if (name !== id || query === undefined) return null;
  const given = Object.fromEntries(query.split("&").map((part) => part.split("=")));
  const result = { ...state };
  if (state.p && ["1", "2", "inf"].includes(given.p)) {
    result.p = given.p === "inf" ? Infinity : Number(given.p);
  }
  const x = state.x && table(given.x, 2)?.[0];
  if (x) result.x = x;
  for (const [long, letter] of Object.entries(NUMBERS)) {
    const number = Number(given[letter]);
    if (state[long] !== undefined && given[letter] && Number.isFinite(number)) result[long] = number;
  }
  if (state.steps) result.steps = table(given.s, 2) ?? [];
  if (state.units) result.units = table(given.w, 5) ?? state.units;
  if (state.split) result.split = given.o?.split(".").map(Number).filter(Number.isInteger) ?? [];
  return result;
}

function rows(table) {
  return table.map((row) => row.map(rounded).join(",")).join(";");
}

function table(text, width) {
  const found = text?.split(";").map((row) => row.split(",").map(Number));
  return found?.every((row) => row.length === width && row.every(Number.isFinite)) ? found : null;
}
