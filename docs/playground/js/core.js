// The mathematics of the playground: ReLU networks with two inputs.
//
// A twin of refmmr.reference for d = 2, in the same notation: f_k are pre-activations, V_k and a_k
// the affine map of layer k on the linear region of a point.  The tests hold it against the
// reference.  Nothing here knows of the page.
//
// A network is { layers: [{ n, m, W, b }] }: W has n rows of m numbers, one after the other.  ReLUs
// stand between the layers; the outputs of the last are the logits.

/** A layer from rows of weights. */
export function layer(rows, b) {
  return { n: rows.length, m: rows[0].length, W: Float64Array.from(rows.flat()),
    b: Float64Array.from(b) };
}

/** A network from base64: little-endian float32, W then b of each layer. */
export function decode(text, sizes) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const numbers = new Float32Array(bytes.buffer);
  let at = 0;
  const take = (count) => Float64Array.from(numbers.subarray(at, (at += count)));
  const layers = [];
  for (let k = 1; k < sizes.length; k++) {
    const m = sizes[k - 1], n = sizes[k];
    layers.push({ n, m, W: take(n * m), b: take(n) });
  }
  return { layers };
}

/** Number of hidden units. */
export function hiddenUnits(net) {
  return net.layers.slice(0, -1).reduce((sum, { n }) => sum + n, 0);
}

/** `V_k`, `a_k` of the next layer from those of the layer before and its mask (none: the input). */
function nextMap({ n, m, W, b }, before, mask) {
  const V = new Float64Array(2 * n), a = Float64Array.from(b);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < m; j++) {
      const w = W[i * m + j];
      if (!before) V[2 * i + j] = w;
      else if (mask[j]) {
        V[2 * i] += w * before.V[2 * j];
        V[2 * i + 1] += w * before.V[2 * j + 1];
        a[i] += w * before.a[j];
      }
    }
  }
  return { V, a };
}

/** The outputs f_k of all affine layers at x; the last are the logits. */
export function forward(net, x) {
  let g = x;
  return net.layers.map(({ n, m, W, b }) => {
    const f = Float64Array.from(b);
    for (let i = 0; i < n; i++) for (let j = 0; j < m; j++) f[i] += W[i * m + j] * g[j];
    g = f.map((value) => Math.max(value, 0));
    return f;
  });
}

/** The class with the largest logit. */
export function predict(net, x) {
  return argmax(forward(net, x).at(-1));
}

/** The linear region of x: f, mask, V and a of each layer. */
export function linearRegion(net, x) {
  const f = forward(net, x);
  const masks = f.slice(0, -1).map((values) => Uint8Array.from(values, (value) => value > 0));
  const maps = [];
  net.layers.forEach((here, k) => maps.push(nextMap(here, maps[k - 1], masks[k - 1])));
  return { f, masks, maps };
}

/** `||w||_q`, 1/p + 1/q = 1, of a vector of two numbers. */
export function dualNorm(w0, w1, p) {
  if (p === 2) return Math.hypot(w0, w1);
  return p === 1 ? Math.max(Math.abs(w0), Math.abs(w1)) : Math.abs(w0) + Math.abs(w1);
}

/** The shortest step in l_p onto `value + <w, step> = 0`; w is not zero. */
export function shortestStep(w0, w1, value, p) {
  if (p === 2) {
    const length = Math.hypot(w0, w1);
    return [-(w0 / length) * (value / length), -(w1 / length) * (value / length)];
  }
  if (p === 1) return Math.abs(w0) >= Math.abs(w1) ? [-value / w0, 0] : [0, -value / w1];
  const size = value / (Math.abs(w0) + Math.abs(w1));
  return [-Math.sign(w0) * size, -Math.sign(w1) * size];
}

function signedDistance(value, norm) {
  if (norm > 0) return value / norm;
  return value < 0 ? -Infinity : Infinity;
}

/**
 * The hyperplanes around x: of each hidden unit `{ layer, unit, w, value, norm, distance }`, and of
 * each class s against y the margin `f_y - f_s`; d_D is signed, and infinite for y itself.
 */
export function hyperplanes(net, x, y, p) {
  const region = linearRegion(net, x);
  const boundary = [], decision = [];
  region.masks.forEach((mask, k) => mask.forEach((_, i) => {
    const w = [region.maps[k].V[2 * i], region.maps[k].V[2 * i + 1]];
    const value = region.f[k][i], norm = dualNorm(...w, p);
    boundary.push({ layer: k, unit: i, w, value, norm,
      distance: signedDistance(Math.abs(value), norm) });
  }));
  const { V } = region.maps.at(-1), logits = region.f.at(-1);
  logits.forEach((logit, s) => {
    const w = [V[2 * y] - V[2 * s], V[2 * y + 1] - V[2 * s + 1]];
    const value = logits[y] - logit, norm = dualNorm(...w, p);
    decision.push({ class: s, w, value, norm,
      distance: s === y ? Infinity : signedDistance(value, norm) });
  });
  return { region, boundary, decision };
}

/** The nearest of some hyperplanes, or null if none exists; of equals the first. */
export function nearest(planes) {
  const d = planes.map(({ distance }) => distance);
  const best = d.indexOf(Math.min(...d));
  return best >= 0 && Number.isFinite(d[best]) ? planes[best] : null;
}

const BEYOND = 1 + 1e-6; // a step onto the decision boundary, made longer to cross it

/**
 * What the distances prove about the class y of x: a radius `lower`, whether it is exact, and then
 * the point of the decision boundary at that distance.
 *
 * It is exact if d_D is not larger than d_B and another logit is the largest behind that point.
 * Where x itself has a tie, nothing is proved.
 */
export function certify(net, x, around, p, y) {
  const dB = nearest(around.boundary), dD = nearest(around.decision);
  const b = dB ? dB.distance : Infinity, d = dD ? dD.distance : Infinity;
  if (around.decision.some((plane) => plane.class !== y && plane.value <= 0)) {
    return { dB, dD, lower: 0, exact: false, adversarial: null };
  }
  const step = d <= b && dD ? shortestStep(...dD.w, dD.value, p) : [0, 0];
  const logits = forward(net, [x[0] + BEYOND * step[0], x[1] + BEYOND * step[1]]).at(-1);
  const exact = logits.some((logit) => logit > logits[y]);
  return { dB, dD, lower: Math.min(b, d), exact,
    adversarial: exact ? [x[0] + step[0], x[1] + step[1]] : null };
}

/** The k smallest distances, the first of equals: indices. */
export function selectNearest(planes, k) {
  const far = ({ distance }) => (distance === -Infinity ? Infinity : distance);
  return planes.map((_, i) => i)
    .sort((i, j) => (far(planes[i]) < far(planes[j]) ? -1 : far(planes[i]) > far(planes[j])) || i - j)
    .slice(0, k);
}

/** `1/k sum max(0, 1 - d / gamma)` over the k nearest, and those with a slope. */
function meanHinge(planes, gamma, k) {
  const selected = selectNearest(planes, k);
  const active = selected.filter(
    (i) => planes[i].distance < gamma && planes[i].distance > -Infinity);
  const value = active.reduce((sum, i) => sum + 1 - planes[i].distance / gamma, 0) / k;
  return { value, selected, active };
}

/** The Maximum Margin Regularizer at one point, from `hyperplanes`; k_D is the number of classes. */
export function mmr(around, gammaB, gammaD, kB) {
  const boundary = meanHinge(around.boundary, gammaB, kB);
  const decision = meanHinge(around.decision, gammaD, around.decision.length);
  return { value: boundary.value + decision.value, boundary, decision };
}

/** The gradient of `||w||_q`; 0 at w = 0. */
function dualNormGradient([w0, w1], p) {
  if (p === 2) {
    const length = Math.hypot(w0, w1);
    return length > 0 ? [w0 / length, w1 / length] : [0, 0];
  }
  if (p === Infinity) return [Math.sign(w0), Math.sign(w1)];
  return Math.abs(w0) >= Math.abs(w1) ? [Math.sign(w0), 0] : [0, Math.sign(w1)];
}

/**
 * Gradient of MMR at (x, y) with respect to all weights: `[{ dW, db }]`.
 *
 * Hinge to distance, distance to f and V, then backpropagation twice: over the sample, for f, and
 * over the probes, for V (refmmr.reference.mmr).
 */
export function mmrGradient(net, x, y, p, gammaB, gammaD, kB) {
  const around = hyperplanes(net, x, y, p);
  const { boundary, decision } = mmr(around, gammaB, gammaD, kB);
  const df = net.layers.map(({ n }) => new Float64Array(n));
  const dV = net.layers.map(({ n }) => new Float64Array(2 * n));
  const add = (k, i, plane, slope, sign) => {
    const gradient = dualNormGradient(plane.w, p);
    const toNorm = -(slope * plane.distance) / plane.norm;
    df[k][i] += (sign[0] * slope) / plane.norm;
    for (const j of [0, 1]) dV[k][2 * i + j] += sign[1] * toNorm * gradient[j];
  };
  for (const i of boundary.active) {
    const plane = around.boundary[i];
    add(plane.layer, plane.unit, plane, -1 / (kB * gammaB), [Math.sign(plane.value), 1]);
  }
  const last = net.layers.length - 1, kD = around.decision.length;
  for (const s of decision.active) {
    const plane = around.decision[s], slope = -1 / (kD * gammaD);
    add(last, y, plane, slope, [1, 1]);
    add(last, s, plane, slope, [-1, -1]);
  }
  return backpropagate(net, x, around.region, df, dV);
}

function backpropagate(net, x, { f, masks, maps }, df, dV) {
  const gradients = [];
  for (let k = net.layers.length - 1; k >= 0; k--) {
    const { n, m, W } = net.layers[k];
    const dW = new Float64Array(n * m);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < m; j++) {
        const on = k === 0 || masks[k - 1][j];
        if (!on) continue;
        // Inputs of the layer: of the sample, and of the two probes.
        const g = k === 0 ? x[j] : f[k - 1][j];
        const g0 = k === 0 ? Number(j === 0) : maps[k - 1].V[2 * j];
        const g1 = k === 0 ? Number(j === 1) : maps[k - 1].V[2 * j + 1];
        const d0 = dV[k][2 * i], d1 = dV[k][2 * i + 1];
        dW[i * m + j] = df[k][i] * g + d0 * g0 + d1 * g1;
        if (k > 0) {
          const w = W[i * m + j];
          df[k - 1][j] += w * df[k][i];
          dV[k - 1][2 * j] += w * d0;
          dV[k - 1][2 * j + 1] += w * d1;
        }
      }
    }
    gradients[k] = { dW, db: df[k] };
  }
  return gradients;
}

/** The network after one step of gradient descent. */
export function stepped(net, gradients, rate) {
  return { layers: net.layers.map((here, k) => ({ ...here,
    W: here.W.map((w, i) => w - rate * gradients[k].dW[i]),
    b: here.b.map((b, i) => b - rate * gradients[k].db[i]) })) };
}

// Polygons.  A convex polygon is { points: [[x, y], ...], labels: [...] }: label i is that of the
// edge from point i to the next, FRAME or the number of the unit (or class) whose line it lies on.

export const FRAME = -1;
const ON_LINE = 1e-12; // a vertex this near to a line, in units of the frame, counts as on it

/** The rectangle `[x0, x1] x [y0, y1]`. */
export function rectangle([x0, y0, x1, y1]) {
  return { points: [[x0, y0], [x1, y0], [x1, y1], [x0, y1]], labels: [FRAME, FRAME, FRAME, FRAME] };
}

/** Signed distances of the vertices to a line, exactly 0 where they are on it. */
function sides({ points }, w0, w1, a) {
  const length = Math.hypot(w0, w1);
  return points.map(([x, y]) => {
    const side = (w0 * x + w1 * y + a) / length;
    return Math.abs(side) <= ON_LINE ? 0 : side;
  });
}

/** The part of the polygon with `sign * <w, z> + a >= 0`, given the sides; null if it is empty. */
function part({ points, labels }, side, sign, label) {
  if (!side.some((s) => s * sign > 0)) return null;
  const kept = { points: [], labels: [] };
  for (let i = 0; i < points.length; i++) {
    const next = (i + 1) % points.length;
    const here = side[i] * sign, there = side[next] * sign;
    if (here >= 0) {
      kept.points.push(points[i]);
      kept.labels.push(here === 0 && there < 0 ? label : labels[i]);
    }
    if (here * there < 0) {
      const t = here / (here - there);
      kept.points.push([points[i][0] + t * (points[next][0] - points[i][0]),
        points[i][1] + t * (points[next][1] - points[i][1])]);
      kept.labels.push(here > 0 ? label : labels[i]);
    }
  }
  return kept;
}

/** The polygon cut by the line `<w, z> + a = 0`: `[negative, positive]`, null where empty. */
export function cut(polygon, w0, w1, a, label) {
  if (w0 === 0 && w1 === 0) return a > 0 ? [null, polygon] : [polygon, null];
  const side = sides(polygon, w0, w1, a);
  const above = part(polygon, side, 1, label), below = part(polygon, side, -1, label);
  return above || below ? [below, above] : [polygon, null];
}

/** All linear regions within a rectangle: `[{ polygon, pattern, V, a }]`, V and a of the logits. */
export function enumerate(net, frame) {
  let found = [{ polygon: rectangle(frame), pattern: [], map: null, mask: null }];
  let first = 0;
  for (let k = 0; k < net.layers.length; k++) {
    const next = [];
    const last = k === net.layers.length - 1;
    for (const region of found) {
      const map = nextMap(net.layers[k], region.map, region.mask);
      if (last) {
        next.push({ ...region, map });
        continue;
      }
      let pieces = [{ polygon: region.polygon, mask: [] }];
      for (let i = 0; i < net.layers[k].n; i++) {
        pieces = pieces.flatMap(({ polygon, mask }) =>
          cut(polygon, map.V[2 * i], map.V[2 * i + 1], map.a[i], first + i).flatMap(
            (piece, on) => (piece ? [{ polygon: piece, mask: [...mask, on] }] : [])));
      }
      for (const { polygon, mask } of pieces) {
        next.push({ polygon, mask, map, pattern: region.pattern.concat(mask) });
      }
    }
    found = next;
    first += net.layers[k].n;
  }
  return found.map(({ polygon, pattern, map }) => ({ polygon, pattern, V: map.V, a: map.a }));
}

/** The polygon of the linear region of a point within a rectangle. */
export function regionPolygon({ masks, maps }, frame) {
  let polygon = rectangle(frame), first = 0;
  masks.forEach((mask, k) => {
    mask.forEach((on, i) => {
      const { V, a } = maps[k];
      polygon = (polygon && cut(polygon, V[2 * i], V[2 * i + 1], a[i], first + i)[on]) || polygon;
    });
    first += mask.length;
  });
  return polygon;
}

/** The parts of a region where each class wins: `[{ class, polygon }]`; labels are the rivals'. */
export function classPieces({ polygon, V, a }) {
  const pieces = [];
  for (let c = 0; c < a.length; c++) {
    let piece = { points: polygon.points, labels: polygon.labels.map(() => FRAME) };
    for (let s = 0; s < a.length && piece; s++) {
      if (s === c) continue;
      const [lost, won] = cut(piece, V[2 * c] - V[2 * s], V[2 * c + 1] - V[2 * s + 1],
        a[c] - a[s], s);
      // Where both logits are the same on the whole piece, the first class has it.
      piece = won || (lost === piece && a[c] === a[s] && c < s ? piece : null);
    }
    if (piece) pieces.push({ class: c, polygon: piece });
  }
  return pieces;
}

/** Area by the shoelace formula. */
export function area({ points }) {
  return points.reduce((sum, [x, y], i) => {
    const [u, v] = points[(i + 1) % points.length];
    return sum + (x * v - u * y) / 2;
  }, 0);
}

export function argmax(values) {
  return values.indexOf(Math.max(...values));
}
