// A component of the page: controls, one or two pictures, a table of numbers, and a link.

import { decode, hiddenUnits, mmrGradient, predict, stepped } from "./core.js";
import { Editor, network } from "./lines.js";
import { Pane } from "./pane.js";
import { element } from "./picture.js";
import { read, rounded, write } from "./state.js";

const RATE = 0.02; // of one step of gradient descent on lambda MMR: one moves the lines visibly
const PACE = 450; // milliseconds for an epoch of the film
const QUIET = 250; // milliseconds after a move until the link and the spoken text follow
const NAMES = { plain: "plain training", mmr: "training with MMR", lines: "your network" };
const NORMS = { 1: "l₁", 2: "l₂", Infinity: "l∞" };

class Playground {
  constructor(root, data) {
    Object.assign(this, { root, data, id: root.id });
    this.show = new Set((root.dataset.show ?? "").split(" ").filter(Boolean));
    this.names = root.dataset.panes.split(" ");
    const start = { p: 2, x: (root.dataset.x ?? "0.45,0.62").split(",").map(Number), gamma: 0.1,
      lam: 0.5, kB: 5, steps: [], epoch: data.epochs.length - 1 };
    if (this.names.includes("lines")) {
      delete start.epoch;
      Object.assign(start, { units: data.lines.units, c: data.lines.c, selected: 0 });
    }
    if (root.dataset.epoch) start.epoch = data.epochs.indexOf(Number(root.dataset.epoch));
    this.start = start;
    this.state = this._tidy(read(this.id, location.hash, start) ?? start);
    this.cache = new Map();
    this._build();
    this.draw();
    addEventListener("hashchange", () => {
      const found = read(this.id, location.hash, this.start);
      if (found) this.set(found, false);
    });
    if (read(this.id, location.hash, start)) root.scrollIntoView();
  }

  /** Values from a link, brought within what the controls can show. */
  _tidy(state) {
    const [x0, y0, x1, y1] = this.data.frame;
    const within = (value, low, high) => Math.min(Math.max(value, low), high);
    const tidy = { ...state, x: [rounded(within(state.x[0], x0, x1)),
      rounded(within(state.x[1], y0, y1))], gamma: within(state.gamma, 0.01, 0.3),
      lam: within(state.lam, 0, 2), kB: Math.round(within(state.kB, 1, 12)),
      steps: state.steps.slice(0, 50) };
    if (tidy.epoch !== undefined) {
      tidy.epoch = Math.round(within(tidy.epoch, 0, this.data.epochs.length - 1));
    }
    if (tidy.units) {
      tidy.units = tidy.units.slice(0, 12).map((unit) => unit.map(rounded));
      tidy.selected = Math.round(within(tidy.selected, 0, tidy.units.length - 1));
    }
    return tidy;
  }

  _build() {
    this.panes = this.names.map((name) => new Pane({ frame: this.data.frame,
      points: this.data.points, name: NAMES[name],
      now: () => this.state.x, seen: (x) => this.set({ x }) }));
    this.controls = element("div", { class: "pg-controls" }, this._norm());
    this.sliders = [];
    if (this.show.has("epochs")) this._film();
    if (this.show.has("hinge")) {
      this._slider("γ", "gamma", 0.01, 0.3, 0.01, (value) => value.toFixed(2));
      this._slider("λ", "lam", 0, 2, 0.05, (value) => value.toFixed(2));
      this._slider("k<sub>B</sub>", "kB", 1, 12, 1, String);
    }
    if (this.show.has("step")) this._steps();
    if (this.state.units) {
      this.editor = new Editor(this.panes[0], () => this.state, (change) => this.set(change));
      this.controls.append(this.editor.root);
    }
    this.table = element("table", { class: "pg-table" });
    this.spoken = element("p", { class: "pg-spoken", role: "status" });
    this.link = element("a", { href: "#" }, "Link to this state");
    this.again = element("button", { type: "button", class: "pg-button" }, "Start again");
    this.again.addEventListener("click", () => this.set(this.start));
    this.root.replaceChildren(this.controls,
      element("div", { class: "pg-panes" }, ...this.panes.map(({ root }) => root)), this._legend(),
      element("div", { class: "pg-wide", tabindex: "0", role: "region",
        "aria-label": `Numbers at the point, ${this.id.replace("play-", "")}` }, this.table),
      this.spoken, element("p", { class: "pg-foot" }, "Drag the point, tap anywhere, or use the "
        + "arrow keys (with Shift: larger steps). ", this.link, " ", this.again));
    this.root.classList.toggle("pg-hinges", this.show.has("hinge"));
    this.root.classList.toggle("pg-single", this.panes.length === 1);
  }

  _norm() {
    const made = element("fieldset", { class: "pg-norm" }, element("legend", {}, "Distances in"));
    this.radios = [1, 2, Infinity].map((p) => {
      const radio = element("input", { type: "radio", name: `${this.id}-p`, value: String(p) });
      radio.addEventListener("change", () => this.set({ p }));
      made.append(element("label", {}, radio, element("span", {}, NORMS[p])));
      return [radio, p];
    });
    return made;
  }

  _slider(text, key, min, max, step, format) {
    const input = element("input", { type: "range", min: String(min), max: String(max),
      step: String(step) });
    const output = element("output");
    input.addEventListener("input", () => {
      this._halt();
      this.set({ [key]: Number(input.value) });
    });
    const name = element("span");
    name.innerHTML = text;
    const label = element("label", { class: "pg-slider" }, name, input, output);
    this.controls.append(label);
    this.sliders.push(() => {
      input.value = this.state[key];
      output.textContent = format(this.state[key]);
      input.ariaValueText = output.textContent;
    });
  }

  _film() {
    const last = this.data.epochs.length - 1;
    this._slider("Epoch", "epoch", 0, last, 1, (value) => String(this.data.epochs[value]));
    this.play = element("button", { type: "button", class: "pg-button" }, "Play");
    this.play.addEventListener("click", () => {
      if (this.timer) return this._halt();
      if (this.state.epoch === last) this.set({ epoch: 0 });
      this.play.textContent = "Stop";
      this.timer = setInterval(() => {
        if (this.state.epoch >= last) return this._halt();
        return this.set({ epoch: this.state.epoch + 1 });
      }, PACE);
      return undefined;
    });
    this.controls.append(this.play);
  }

  _halt() {
    clearInterval(this.timer);
    this.timer = undefined;
    if (this.play) this.play.textContent = "Play";
  }

  _steps() {
    const button = (text, act) => {
      const made = element("button", { type: "button", class: "pg-button" }, text);
      made.addEventListener("click", act);
      return made;
    };
    this.count = element("output");
    this.controls.append(element("div", { class: "pg-row" },
      button("One step of gradient descent here",
        () => this.set({ steps: [...this.state.steps, this.state.x] })),
      button("Undo", () => this.set({ steps: this.state.steps.slice(0, -1) })), this.count));
  }

  /** The network of a picture, remembered until something that it depends on changes. */
  _net(name) {
    const { units, c, epoch, steps, p, gamma, lam, kB } = this.state;
    const key = JSON.stringify([name, units, c, epoch,
      steps.length ? [steps, String(p), gamma, lam, kB] : 0]);
    if (!this.cache.has(key)) {
      let net = units ? network(units, c)
        : decode(this.data.trainings[name].weights[epoch], this.data.sizes);
      for (const x of steps) {
        const gradients = mmrGradient(net, x, predict(net, x), p, gamma, gamma,
          Math.min(kB, hiddenUnits(net)));
        net = stepped(net, gradients, RATE * lam);
      }
      if (this.cache.size > 60) this.cache.clear();
      this.cache.set(key, net);
    }
    return this.cache.get(key);
  }

  /** Change the state; the page follows with the next frame. */
  set(change, byHand = true) {
    this.state = this._tidy({ ...this.state, ...change });
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw();
    });
    clearTimeout(this.later);
    this.later = setTimeout(() => this._settle(byHand), QUIET);
  }

  draw() {
    const found = this.panes.map((pane, i) => {
      pane.setNet(this._net(this.names[i]));
      return pane.update(this.state, this.show);
    });
    const epoch = this.state.epoch;
    this.panes.forEach((pane, i) => {
      const name = NAMES[this.names[i]];
      pane.heading.textContent = name[0].toUpperCase() + name.slice(1)
        + (epoch === undefined ? "" : `, epoch ${this.data.epochs[epoch]}`);
    });
    for (const [radio, p] of this.radios) radio.checked = p === this.state.p;
    for (const follow of this.sliders) follow();
    if (this.count) {
      const n = this.state.steps.length;
      this.count.textContent = `${n} step${n === 1 ? "" : "s"}`;
    }
    this.editor?.update();
    this._numbers(found);
    this.found = found;
    this.link.href = `#${write(this.id, this.state)}`;
  }

  _numbers(found) {
    const rows = this._rows(found);
    const heads = this.names.length > 1
      ? [element("tr", {}, element("td"), ...this.names.map((name) =>
        element("th", { scope: "col" }, { plain: "plain", mmr: "MMR" }[name])))] : [];
    if (this.cells?.length !== rows.length) {
      this.cells = rows.map(() => found.map(() => element("td")));
      this.table.replaceChildren(...heads, ...rows.map(([head], i) =>
        element("tr", {}, element("th", { scope: "row" }, head), ...this.cells[i])));
    }
    rows.forEach(([, values], i) => values.forEach((value, j) => {
      const cell = this.cells[i][j];
      if (cell.dataset.value === value) return;
      cell.dataset.value = value;
      cell.innerHTML = value;
    }));
  }

  /** The rows of the table: a heading, and a value of each picture. */
  _rows(found) {
    const each = (value) => found.map((at, i) => value(at, this.panes[i], this.names[i]));
    const name = ({ layer, unit }) => (this.panes[0].net.layers.length > 2
      ? `unit ${unit + 1} of layer ${layer + 1}` : `line ${unit + 1}`);
    const rows = [
      ["class here", each(({ y }) => `<i class="pg-key pg-class${y}"></i>${y}`)],
      ["pattern", each(({ around }) => around.region.masks.map((mask) =>
        `<span class="pg-pattern" role="img" aria-label="${mask.reduce((a, b) => a + b, 0)} of ${
          mask.length} units on">${Array.from(mask, (on) => `<i class="${on ? "on" : ""}"></i>`)
          .join("")}</span>`).join(""))],
      ["<b class=\"pg-b\">d<sub>B</sub></b> to the region boundary", each(({ proved: { dB } }) =>
        (dB ? `<b>${digits(dB.distance)}</b> ${name(dB)}` : "none"))],
      ["<b class=\"pg-d\">d<sub>D</sub></b> to the decision boundary", each(({ proved: { dD } }) =>
        (dD ? `<b>${digits(dD.distance)}</b>` : "none"))],
      ["<b class=\"pg-r\">proved radius</b>", each(({ proved }) => (Number.isFinite(proved.lower)
        ? `<b>${digits(proved.lower)}</b> ${proved.exact
          ? "exact: ✕ has the other class" : "a lower bound"}` : "no limit"))],
    ];
    if (this.show.has("hinge")) {
      rows.push(["MMR here", each(({ terms: { value, boundary, decision } }) =>
        `<b>${value.toFixed(3)}</b> = ${boundary.value.toFixed(3)} + ${
          decision.value.toFixed(3)}`)], ["λ MMR", each(({ terms }) =>
        (this.state.lam * terms.value).toFixed(3))]);
    }
    rows.push(["regions in the picture", each((_, pane) => {
      const n = hiddenUnits(pane.net);
      return `${pane.regions.length}${this.state.units
        ? ` of at most ${1 + n + (n * (n - 1)) / 2}` : ""}`;
    })]);
    if (this.state.epoch !== undefined && !this.state.steps.length) {
      const tested = (name) => this.data.trainings[name].tested[this.state.epoch];
      rows.push(["test error", each((_, __, name_) =>
        `${(100 * tested(name_).error).toFixed(1)} %`)], ["mean proved l₂ radius",
        each((_, __, name_) => `${digits(tested(name_).radius)}`)]);
    }
    return rows.map(([head, values]) => {
      const cell = element("span");
      cell.innerHTML = head;
      return [cell, values];
    });
  }

  _legend() {
    const entry = (kind, text) => element("span", {}, element("i", { class: `pg-key ${kind}` }),
      text);
    const entries = [entry("pg-b", "nearest region boundary"), entry("pg-d",
      "decision boundary of this region"), entry("pg-r", "proved ball")];
    if (this.show.has("hinge")) entries.push(entry("pg-g", "ball of radius γ"));
    return element("p", { class: "pg-legend" }, ...entries);
  }

  /** What waits until the reader pauses: the address, and what is read aloud. */
  _settle(byHand) {
    if (byHand) history.replaceState(null, "", `#${write(this.id, this.state)}`);
    this.spoken.textContent = `At ${this.state.x.map((z) => z.toFixed(2)).join(", ")}: `
      + this.found.map(({ y, proved }, i) => `${NAMES[this.names[i]]}: class ${y}, radius ${
        digits(proved.lower)}, ${proved.exact ? "exact" : "a lower bound"}`).join("; ");
  }
}

/** Three significant digits. */
function digits(number) {
  if (!Number.isFinite(number)) return "∞";
  return number >= 0.1 ? number.toFixed(3) : number.toPrecision(3);
}

/** Start all components of the page. */
export function begin(data) {
  return [...document.querySelectorAll(".pg[data-panes]")].map((root) =>
    new Playground(root, data));
}
