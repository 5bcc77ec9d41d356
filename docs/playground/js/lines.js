// A network of one hidden layer whose units are lines that the reader moves.
//
// A unit [x, y, t, s, v] is `v max(0, s (cos t (z_0 - x) + sin t (z_1 - y)))`: a point of its line,
// the angle of its normal, its slope, and its weight in the difference of the two logits.

import { layer } from "./core.js";
import { movable } from "./pane.js";
import { element, shape } from "./picture.js";

const ARM = 0.16; // from the handle that moves a line to the one that turns it
const MOST = 12; // units

/** The network with these units; c is the difference of the two output biases. */
export function network(units, c) {
  return { layers: [
    layer(units.map(([, , t, s]) => [s * Math.cos(t), s * Math.sin(t)]),
      units.map(([x, y, t, s]) => -s * (Math.cos(t) * x + Math.sin(t) * y))),
    layer([units.map((unit) => -unit[4] / 2), units.map((unit) => unit[4] / 2)], [-c / 2, c / 2]),
  ] };
}

/** Handles on the picture and buttons for the units; `change` is called with new values. */
export class Editor {
  constructor(pane, state, change) {
    Object.assign(this, { pane, state, change });
    const handle = (name, kind) => element("button", { type: "button",
      class: `pg-handle pg-${kind}`, "aria-label": name, "aria-roledescription": "handle" });
    this.mover = handle("Move the line", "mover");
    this.turner = handle("Turn the line", "turner");
    pane.stage.append(this.mover, this.turner);
    this.line = pane.extra.appendChild(shape("path", { class: "pg-selected" }));
    movable(this.mover, pane.stage, (place) => {
      const [x, y] = pane.place({ ...place, origin: this.unit.slice(0, 2) });
      this._set({ 0: x, 1: y });
    });
    movable(this.turner, pane.stage, (place) => this._turn(place));
    this.list = element("div", { class: "pg-units", role: "group", "aria-label": "Hidden units" });
    this.weight = element("input", { type: "range", min: "-10", max: "10", step: "0.1" });
    this.weight.addEventListener("input", () => this._set({ 4: Number(this.weight.value) }));
    this.shown = element("output");
    const button = (text, act) => {
      const made = element("button", { type: "button", class: "pg-button" }, text);
      made.addEventListener("click", act);
      return made;
    };
    this.add = button("Add a line", () => this._add());
    this.remove = button("Remove it", () => this._remove());
    this.root = element("div", { class: "pg-editor" }, this.list,
      element("label", { class: "pg-slider" }, "Its weight ", this.weight, this.shown),
      element("div", { class: "pg-row" }, this.add,
        button("Flip its side", () => this._set({ 2: this.unit[2] + Math.PI })), this.remove));
  }

  get unit() {
    const { units, selected } = this.state();
    return units[selected];
  }

  _set(values) {
    const { units, selected } = this.state();
    const low = [-0.1, -0.1], high = [1.1, 1.1];
    const unit = units[selected].map((number, i) => values[i] ?? number);
    for (const j of [0, 1]) unit[j] = Math.min(Math.max(unit[j], low[j]), high[j]);
    unit[2] = Math.atan2(Math.sin(unit[2]), Math.cos(unit[2]));
    this.change({ units: units.with(selected, unit) });
  }

  _turn({ at, by }) {
    const [x, y, t] = this.unit;
    if (by) return this._set({ 2: t - (by[0] + by[1]) * 4 });
    const [u, v] = this.pane.place({ at });
    // The arm lies along the line, a quarter turn from the normal.
    return this._set({ 2: Math.atan2(v - y, u - x) - Math.PI / 2 });
  }

  // A quick click may come before the drawing that disables the button.
  _add() {
    const { units } = this.state();
    if (units.length >= MOST) return;
    const t = 2.4 * units.length; // about the golden angle: no two new lines are parallel
    this.change({ units: [...units, [0.5, 0.5, Math.atan2(Math.sin(t), Math.cos(t)), 4, 4]],
      selected: units.length });
  }

  _remove() {
    const { units, selected } = this.state();
    if (units.length <= 1) return;
    this.change({ units: units.toSpliced(selected, 1),
      selected: Math.min(selected, units.length - 2) });
  }

  update() {
    const { units, selected } = this.state();
    if (this.list.children.length !== units.length) {
      this.list.replaceChildren(...units.map((_, i) => {
        const made = element("button", { type: "button", class: "pg-button" }, `line ${i + 1}`);
        made.addEventListener("click", () => this.change({ selected: i }));
        return made;
      }));
    }
    [...this.list.children].forEach((made, i) => (made.ariaPressed = String(i === selected)));
    const [x, y, t, , v] = this.unit;
    const normal = [Math.cos(t), Math.sin(t)], along = [-normal[1], normal[0]];
    const end = (size) => this.pane.at([x + size * along[0], y + size * along[1]]);
    // The small stroke points to the side where the unit is on.
    const [u0, v0] = this.pane.at([x, y]);
    const [u1, v1] = this.pane.at([x + 0.06 * normal[0], y + 0.06 * normal[1]]);
    this.line.setAttribute("d", `M${end(-3)}L${end(3)}M${u0},${v0}L${u1},${v1}`);
    for (const [handle, size] of [[this.mover, 0], [this.turner, ARM]]) {
      const [u, w] = end(size);
      handle.style.left = `${u / 10}%`;
      handle.style.top = `${w / 10}%`;
    }
    this.weight.value = v;
    this.shown.textContent = v.toFixed(1);
    this.add.disabled = units.length >= MOST;
    this.remove.disabled = units.length <= 1;
  }
}
