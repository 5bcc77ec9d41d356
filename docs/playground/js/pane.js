// One picture of a network with a point to move, and what belongs to the point.

import { certify, hyperplanes, linearRegion, mmr, predict, regionPolygon,
  shortestStep } from "./core.js";
import { element, Picture, shape, SIZE } from "./picture.js";

export class Pane extends Picture {
  /** Build the picture; `now` says where the point is, `seen` is told where it should be. */
  constructor({ frame, points, name, now, seen }) {
    super(frame, `Linear regions, ${name}`);
    this.now = now;
    this.points = points;
    this.heading = element("div", { class: "pg-title" });
    this.handle = element("button", { type: "button", class: "pg-handle pg-point",
      "aria-label": `Point, ${name}`, "aria-roledescription": "movable point" });
    this.stage.append(this.handle);
    this.hinge = shape("svg", { viewBox: "0 0 320 110", class: "pg-hinge", role: "img",
      "aria-label": `Hinges of the distances, ${name}` });
    this.root = element("div", { class: "pg-pane" }, this.heading, this.stage, this.hinge);
    this._layers();
    movable(this.handle, this.stage, (place) => seen(this.place(place)));
    anywhere(this.stage, this.handle, (place) => seen(this.place(place)));
  }

  _layers() {
    this.region = this.add("polygon", "pg-region");
    this.data = this.add("g", "pg-data");
    for (const [x, y, label] of this.points) {
      const [u, v] = this.at([x, y]);
      this.data.append(label
        ? shape("path", { d: `M${u - 12},${v + 9}h24l-12,-22z`, class: "pg-class1" })
        : shape("circle", { cx: u, cy: v, r: 10, class: "pg-class0" }));
    }
    this.around = this.add("path", "pg-around");
    this.reach = this.add("path", "pg-reach");
    this.ball = this.add("path", "pg-ball");
    this.lineB = this.add("path", "pg-line pg-b");
    this.lineD = this.add("path", "pg-line pg-d");
    this.stepB = this.add("path", "pg-step pg-b");
    this.stepD = this.add("path", "pg-step pg-d");
    this.cross = this.add("path", "pg-cross");
    this.extra = this.add("g", "pg-extra");
  }

  /** The place in the plane of a share of the stage, or of a move by shares of it. */
  place({ at, by, origin }) {
    const [x0, y0, x1, y1] = this.frame;
    const wide = x1 - x0, high = y1 - y0;
    if (at) return [x0 + at[0] * wide, y1 - at[1] * high];
    const [x, y] = origin ?? this.now();
    return [x + by[0] * wide, y - by[1] * high];
  }

  /** Show what belongs to the point of the state; returns the numbers. */
  update({ x, p, gamma, kB }, show) {
    const y = predict(this.net, x);
    const around = hyperplanes(this.net, x, y, p);
    const proved = certify(this.net, x, around, p, y);
    const terms = mmr(around, gamma, gamma, Math.min(kB, around.boundary.length));
    const [u, v] = this.at(x);
    this.handle.style.left = `${u / (SIZE / 100)}%`;
    this.handle.style.top = `${v / (SIZE / 100)}%`;
    const corners = regionPolygon(linearRegion(this.net, x), this.frame).points;
    this.region.setAttribute("points", corners.map((z) => this.at(z)).join(" "));
    const lines = terms.boundary.selected.map((i) => around.boundary[i])
      .filter(({ distance }) => Number.isFinite(distance));
    this.around.setAttribute("d",
      show.has("hyperplanes") ? lines.map((plane) => this._line(x, plane)).join("") : "");
    this.reach.setAttribute("d", show.has("hinge") ? this.ballPath(x, gamma, p) : "");
    this.ball.setAttribute("d",
      Number.isFinite(proved.lower) ? this.ballPath(x, proved.lower, p) : "");
    for (const [plane, line, step] of [[proved.dB, this.lineB, this.stepB],
      [proved.dD, this.lineD, this.stepD]]) {
      line.setAttribute("d", plane ? this._line(x, plane) : "");
      step.setAttribute("d", plane ? this._step(x, plane, p) : "");
    }
    const at = proved.adversarial && this.at(proved.adversarial);
    this.cross.setAttribute("d", at
      ? `M${at[0] - 11},${at[1] - 11}l22,22m0,-22l-22,22` : "");
    if (show.has("hinge")) this._hinge(around, terms, gamma);
    return { y, around, proved, terms };
  }

  /** The whole hyperplane within the frame, and a little beyond. */
  _line(x, { w, value }) {
    const length = Math.hypot(...w), far = 4 * (this.frame[2] - this.frame[0]);
    const foot = [0, 1].map((j) => x[j] - ((w[j] / length) * value) / length);
    const along = [(-w[1] / length) * far, (w[0] / length) * far];
    const ends = [-1, 1].map((s) => this.at([foot[0] + s * along[0], foot[1] + s * along[1]]));
    return ends.flat().some((number) => Math.abs(number) > 1e6)
      ? "" : `M${ends[0]}L${ends[1]}`;
  }

  _step(x, { w, value }, p) {
    const step = shortestStep(...w, value, p);
    const [u, v] = this.at([x[0] + step[0], x[1] + step[1]]);
    return Math.max(Math.abs(u), Math.abs(v)) > 1e6 ? "" : `M${this.at(x)}L${u},${v}`;
  }

  /** The hinge over the distances: the k_B nearest boundaries, and the decision boundary. */
  _hinge({ boundary, decision }, terms, gamma) {
    const right = 0.32, x = (d) => 20 + (286 * Math.min(d, right)) / right;
    const y = (d) => 84 - 70 * Math.max(0, 1 - d / gamma);
    const mark = (d, kind, counted) => shape(kind === "pg-b" ? "circle" : "rect", {
      class: `${kind}${counted ? "" : " pg-left"}`,
      ...(kind === "pg-b" ? { cx: x(d), cy: y(d), r: 4 }
        : { x: x(d) - 4.5, y: y(d) - 4.5, width: 9, height: 9 }) });
    const words = (text, u, v, anchor) => {
      const made = shape("text", { x: u, y: v, "text-anchor": anchor });
      made.textContent = text;
      return made;
    };
    const selected = new Set(terms.boundary.selected);
    this.hinge.replaceChildren(
      shape("path", { class: "pg-axis", d: "M20,84H306M20,84V10" }),
      shape("path", { class: "pg-curve", d: `M20,14L${x(gamma)},84H306` }),
      ...boundary.flatMap(({ distance }, i) =>
        !selected.has(i) && distance < right ? [mark(distance, "pg-b", false)] : []),
      ...boundary.flatMap(({ distance }, i) =>
        selected.has(i) && distance < right ? [mark(distance, "pg-b", true)] : []),
      ...decision.flatMap(({ distance }) =>
        distance >= 0 && distance < right ? [mark(distance, "pg-d", true)] : []),
      words("γ", x(gamma), 102, "middle"), words("0", 20, 102, "middle"),
      words("distance", x(gamma) < 220 ? 306 : 180, 102, "end"), words("1", 14, 18, "end"),
      words("max(0, 1 − distance/γ)", 306, 18, "end"));
  }
}

/** A place of the pointer as shares of the stage. */
function share(stage, event) {
  const { left, top, width, height } = stage.getBoundingClientRect();
  return [(event.clientX - left) / width, (event.clientY - top) / height];
}

function follow(target, stage, first, moved) {
  const move = (event) => moved({ at: share(stage, event) });
  const end = () => {
    target.removeEventListener("pointermove", move);
    for (const name of ["pointerup", "pointercancel"]) target.removeEventListener(name, end);
  };
  target.setPointerCapture(first.pointerId);
  target.addEventListener("pointermove", move);
  for (const name of ["pointerup", "pointercancel"]) target.addEventListener(name, end);
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** A handle that follows pointer, finger and arrow keys. */
export function movable(handle, stage, moved) {
  handle.addEventListener("pointerdown", (event) => {
    event.stopPropagation();
    if (event.button) return;
    follow(handle, stage, event, moved);
  });
  handle.addEventListener("click", (event) => event.stopPropagation());
  handle.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key];
    if (!arrow || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const size = event.shiftKey ? 0.05 : 0.005;
    moved({ by: arrow.map((part) => part * size) });
  });
}

/** Pointing anywhere moves the point; a finger that swipes still scrolls the page. */
function anywhere(stage, handle, moved) {
  stage.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch" || event.button) return;
    event.preventDefault();
    handle.focus({ preventScroll: true });
    moved({ at: share(stage, event) });
    follow(stage, stage, event, moved);
  });
  stage.addEventListener("click", (event) => {
    if (event.pointerType === "touch") moved({ at: share(stage, event) });
  });
}
