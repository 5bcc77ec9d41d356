// A tree of branch and bound to open node by node.  All numbers are Python's: this draws them.

import { decode } from "./core.js";
import { childrenOf, layout, path, progress, tidySplit, unitName, visible } from "./nodes.js";
import { element, Picture, shape } from "./picture.js";
import { read, write } from "./state.js";

const METHODS = [["ibp", "IBP"], ["fast-lin", "Fast-Lin"], ["crown", "CROWN"],
  ["alpha", "α-CROWN"], ["beta", "α,β-CROWN"]];
const WIDE = 41, HIGH = 58; // pixels between nodes of the tree
const NEXT = { ArrowUp: "parent", ArrowDown: "child", ArrowLeft: "before", ArrowRight: "after" };

export class Tree {
  constructor(root, data) {
    Object.assign(this, { root, data, id: root.id });
    this.net = decode(data.weights, data.sizes);
    this.start = { tree: data.trees.length - 2, node: 0, split: [] };
    this._build();
    this.set(read(this.id, location.hash, this.start) ?? this.start, false);
    addEventListener("hashchange", () => {
      const found = read(this.id, location.hash, this.start);
      if (found) this.set(found, false);
    });
    if (read(this.id, location.hash, this.start)) root.scrollIntoView();
  }

  get nodes() {
    return this.data.trees[this.state.tree].nodes;
  }

  /** Change the state, and draw it. */
  set(change, byHand = true) {
    const state = { ...this.state, ...change };
    const last = this.data.trees.length - 1;
    const tree = Math.min(Math.max(Math.round(state.tree), 0), last);
    const { nodes } = this.data.trees[tree];
    const split = tidySplit(nodes, state.split);
    const node = visible(nodes, split).includes(state.node) ? state.node : 0;
    this.state = { tree, split, node };
    this.draw();
    if (byHand) history.replaceState(null, "", `#${write(this.id, this.state)}`);
  }

  /** Split a node, and look at the child whose bound is the lower one. */
  split(i) {
    if (this.nodes[i].outcome !== "split" || this.state.split.includes(i)) return;
    const [a, b] = childrenOf(this.nodes)[i];
    const bound = (j) => this.nodes[j].bounds.beta;
    this.set({ split: [...this.state.split, i], node: bound(a) <= bound(b) ? a : b });
  }

  /** What the large button does: split this node, or go on to the open one of the lowest bound. */
  step() {
    const { open } = progress(this.nodes, this.state.split);
    if (open.includes(this.state.node)) return this.split(this.state.node);
    return this.set({ node: open.reduce((a, b) =>
      (this.nodes[b].bounds.beta < this.nodes[a].bounds.beta ? b : a)) });
  }

  // The parts of the page.

  _build() {
    const button = (text, act) => {
      const made = element("button", { type: "button", class: "pg-button" }, text);
      made.addEventListener("click", act);
      return made;
    };
    this.go = button("", () => this.step());
    this.undo = button("Undo", () => {
      const split = this.state.split.slice(0, -1);
      this.set({ split, node: this.state.split.at(-1) ?? 0 });
    });
    this.link = element("a", { href: "#" }, "Link to this state");
    this.picture = this._picture();
    this.heading = element("div", { class: "pg-title" });
    this.canopy = element("div", { class: "pg-canopy", role: "group",
      "aria-label": "Tree of nodes" });
    this.twigs = shape("svg", { "aria-hidden": "true" });
    this.buttons = this.data.trees.map(({ nodes }) => nodes.map((_, i) => this._button(i)));
    this.bounds = shape("svg", { viewBox: "0 0 340 172", class: "pg-chart", role: "img" });
    this.relus = element("div", { class: "pg-relus" });
    this.say = element("p", { class: "pg-say", role: "status" });
    this.units = element("p", { class: "pg-states" });
    const pane = (title, ...parts) => element("div", { class: "pg-pane" }, title, ...parts);
    const title = (text) => element("div", { class: "pg-title" }, text);
    this.root.replaceChildren(
      element("div", { class: "pg-controls" }, this._radii(), this.go, this.undo), this.say,
      element("div", { class: "pg-panes" },
        pane(this.heading, this.picture.stage, this._legend()),
        pane(title("Tree: left off, right on"),
          element("div", { class: "pg-wide" }, this.canopy)),
        pane(title("Lower bounds of the margin in this node"), this.bounds),
        pane(title("Its ReLUs"), this.relus, this.units)),
      element("p", { class: "pg-foot" }, "Click a node to see it, an open one again to split it; "
        + "arrow keys go through the tree. ", this.link, " ",
      button("Start again", () => this.set({ split: [], node: 0 }))));
    this.root.classList.add("pg-tree");
  }

  _radii() {
    const made = element("fieldset", { class: "pg-norm" }, element("legend", {}, "Radius"));
    this.radios = this.data.trees.map(({ radius }, tree) => {
      const radio = element("input", { type: "radio", name: `${this.id}-r`, value: String(tree) });
      radio.addEventListener("change", () => this.set({ tree, split: [], node: 0 }));
      made.append(element("label", {}, radio, element("span", {}, radius.toFixed(2))));
      return radio;
    });
    return made;
  }

  _button(i) {
    const made = element("button", { type: "button", class: "pg-node" });
    made.addEventListener("click", () => {
      if (this.state.node === i) this.split(i);
      else this.set({ node: i });
      this._focus();
    });
    made.addEventListener("keydown", (event) => {
      const way = NEXT[event.key];
      if (!way || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      const places = layout(this.nodes, this.state.split);
      const row = [...places.keys()].filter((j) => places.get(j)[1] === places.get(i)[1])
        .sort((a, b) => places.get(a)[0] - places.get(b)[0]);
      const child = this.state.split.includes(i) ? childrenOf(this.nodes)[i][0] : undefined;
      const to = { parent: this.nodes[i].parent, child, before: row[row.indexOf(i) - 1],
        after: row[row.indexOf(i) + 1] }[way];
      if (to === undefined || to < 0) return;
      this.set({ node: to });
      this._focus();
    });
    return made;
  }

  _focus() {
    this.buttons[this.state.tree][this.state.node].focus();
  }

  _legend() {
    const entry = (kind, text) => element("span", {},
      element("i", { class: `pg-key ${kind}` }), text);
    return element("p", { class: "pg-legend" },
      entry("pg-suspect", "a counterexample is still possible"),
      entry("pg-veiled", "in another node"), entry("pg-least", "the bound is smallest"),
      entry("pg-chord", "lines: where a bound is 0"));
  }

  // The picture.

  _picture() {
    const picture = new Picture(this.data.frame, "The disc, and what a node leaves of it");
    const disc = picture.svg.appendChild(shape("clipPath", { id: `${this.id}-disc` }));
    this.disc = disc.appendChild(shape("path"));
    const inside = picture.svg.appendChild(shape("g", { "clip-path": `url(#${this.id}-disc)` }));
    const add = (name, kind, parent = inside) => parent.appendChild(shape(name, { class: kind }));
    this.part = add("polygon", "pg-suspect");
    this.veil = add("path", "pg-veil");
    this.bends = add("path", "pg-bend");
    this.circle = picture.add("path", "pg-disc");
    this.chords = METHODS.slice(1).map(([method]) =>
      [method, picture.add("path", `pg-m-${method}`)]);
    const [u, v] = picture.at(this.data.centre);
    picture.add("path", "pg-selected").setAttribute("d", `M${u - 14},${v}h28M${u},${v - 14}v28`);
    this.least = picture.add("circle", "pg-least");
    this.cross = picture.add("path", "pg-cross");
    return picture;
  }

  draw() {
    const { tree, node, split } = this.state;
    this.picture.setNet(this.net);
    this.radios.forEach((radio, i) => (radio.checked = i === tree));
    this._drawNode(this.nodes[node]);
    this._drawTree();
    this._drawBounds(this.nodes[node]);
    this._drawRelus(this.nodes[node]);
    this._drawUnits(this.nodes[node]);
    this._tell(this.nodes[node]);
    this.undo.disabled = !split.length;
    this.link.href = `#${write(this.id, this.state)}`;
  }

  _drawNode({ part, chords, point, outcome }) {
    const { picture } = this;
    const fixed = new Map(path(this.nodes, this.state.node).map(({ unit, sign }) => [unit, sign]));
    const within = ({ pattern }) =>
      [...fixed].every(([unit, sign]) => pattern[unit] === Number(sign > 0));
    const outline = ({ polygon }) => `M${polygon.points.map((z) => picture.at(z)).join("L")}Z`;
    const regions = picture.regions;
    this.veil.setAttribute("d", regions.filter((r) => !within(r)).map(outline).join(""));
    this.bends.setAttribute("d", regions.filter(within).flatMap(({ polygon: { points, labels } }) =>
      labels.flatMap((label, i) => (fixed.has(label)
        ? [`M${picture.at(points[i])}L${picture.at(points[(i + 1) % points.length])}`] : [])))
      .join(""));
    const ball = picture.ballPath(this.data.centre, this.data.trees[this.state.tree].radius, 2);
    this.disc.setAttribute("d", ball);
    this.circle.setAttribute("d", ball);
    this.part.setAttribute("points", part.map((z) => picture.at(z)).join(" "));
    for (const [method, chord] of this.chords) {
      const ends = chords[method];
      chord.setAttribute("d", ends ? `M${picture.at(ends[0])}L${picture.at(ends[1])}` : "");
    }
    const [u, v] = picture.at(point);
    const example = outcome === "example";
    this.cross.setAttribute("d", example ? `M${u - 16},${v - 16}l32,32m0,-32l-32,32` : "");
    for (const [key, value] of Object.entries({ cx: u, cy: v, r: example ? 0 : 13 })) {
      this.least.setAttribute(key, value);
    }
  }

  // The tree.

  _drawTree() {
    const { node, split, tree } = this.state;
    const places = layout(this.nodes, split);
    const all = [...places.values()];
    const columns = Math.max(...all.map(([column]) => column)) + 1;
    const width = Math.max(columns * WIDE, 220);
    const height = (Math.max(...all.map((place) => place[1])) + 1) * HIGH;
    const at = (i) => {
      const [column, depth] = places.get(i);
      return [(width - columns * WIDE) / 2 + (column + 0.5) * WIDE, (depth + 0.5) * HIGH];
    };
    Object.assign(this.canopy.style, { width: `${width}px`, height: `${height}px` });
    for (const [name, value] of [["width", width], ["height", height]]) {
      this.twigs.setAttribute(name, value);
    }
    this.twigs.replaceChildren(...[...places.keys()].filter((i) => i > 0).map((i) =>
      shape("path", { d: `M${at(this.nodes[i].parent)}L${at(i)}` })));
    const had = document.activeElement;
    this.canopy.replaceChildren(this.twigs, ...[...places.keys()].sort((a, b) => a - b).map((i) => {
      const made = this.buttons[tree][i], kind = this._kind(i);
      const [u, v] = at(i);
      made.className = `pg-node pg-${kind}`;
      made.style.left = `${u}px`;
      made.style.top = `${v}px`;
      const bound = signed(this.nodes[i].bounds.beta);
      made.textContent = { proved: `✓ ${bound}`, example: "✕" }[kind] ?? bound;
      made.ariaCurrent = String(i === node);
      made.ariaLabel = `Node ${i}, bound ${bound}, ${{
        open: "open", split: "split", proved: "proved", example: "a counterexample" }[kind]}`;
      return made;
    }));
    if (this.canopy.contains(had)) had.focus();
  }

  _kind(i) {
    const { outcome } = this.nodes[i];
    if (outcome === "empty") return "proved";
    return outcome === "split" && !this.state.split.includes(i) ? "open" : outcome;
  }

  // The charts.

  /** Each method's bound, and what it loses: the line from it to the smallest margin. */
  _drawBounds({ bounds, truth }) {
    const own = this.nodes.flatMap(({ bounds: { ibp, ...rest }, truth: t }) =>
      [...Object.values(rest), t ?? 0]);
    const low = Math.min(...own) - 0.1, high = Math.max(...own) + 0.1;
    const x = (value) => 122 + (160 * (Math.max(value, low) - low)) / (high - low);
    const text = (words, u, v, anchor = "start") => {
      const made = shape("text", { x: u, y: v, "text-anchor": anchor });
      made.textContent = words;
      return made;
    };
    const rows = METHODS.flatMap(([method, name], i) => {
      const y = 34 + 26 * i, value = bounds[method];
      const loss = truth === null ? "" : `M${x(value)},${y}H${x(truth)}`;
      return [shape("path", { d: `M2,${y}H26`, class: `pg-m-${method}` }), text(name, 34, y + 4),
        shape("path", { d: loss, class: "pg-loss" }),
        value < low ? text("◂", 122, y + 4, "middle")
          : shape("circle", { cx: x(value), cy: y, r: 5, class: value > 0 ? "pg-r" : "pg-d" }),
        text(`${value > 0 ? "✓ " : ""}${signed(value)}`, 338, y + 4, "end")];
    });
    const marks = [shape("path", { d: `M${x(0)},20V150`, class: "pg-zero" }),
      text("0", x(0), 166, "middle")];
    if (truth !== null) {
      marks.push(shape("path", { d: `M${x(truth)},20V150`, class: "pg-truth" }),
        text("smallest margin", x(truth), 12, "middle"));
    }
    this.bounds.replaceChildren(...marks, ...rows);
    const words = METHODS.map(([method, name]) => `${name} ${signed(bounds[method])}`).join(", ");
    this.bounds.ariaLabel = `Lower bounds of the margin in this node: ${words}; ${
      truth === null ? "no point of a grid of the disc is in it" : `its smallest value is ${signed(truth)}`}`;
  }

  /** The unit that the last split fixed, and the one that the next would. */
  _drawRelus({ parent, unit, sign, split }) {
    const figures = [];
    if (parent >= 0) {
      const { l, u } = this.nodes[parent].split;
      figures.push([`${this._unit(unit)} is ${sign > 0 ? "on" : "off"} here: nothing is lost`, l, u, 0,
        sign > 0 ? `M0,0L${u},${u}` : `M${l},0H0`, `M${l},0L${u},${u}L0,0Z`, "pg-gone"]);
    }
    if (split) {
      const { l, u, slope } = split;
      figures.push([`${this._unit(split.unit)} costs most: anywhere between its lines`, l, u,
        slope * l, "",
        `M${l},0L${u},${u}L${u},${slope * u}L${l},${slope * l}Z`, "pg-loose"]);
    }
    this.relus.replaceChildren(...figures.map(([words, l, u, low, exact, loose, kind]) => {
      const scale = Math.min(130 / (u - l), 75 / (u - low));
      const svg = shape("svg", { viewBox: "0 0 150 100", role: "img", "aria-label": words });
      const place = `translate(${75 - (scale * (l + u)) / 2},${79 + scale * low})`;
      const plot = svg.appendChild(shape("g",
        { transform: `${place} scale(${scale},${-scale})` }));
      const grown = { "vector-effect": "non-scaling-stroke" };
      plot.append(shape("path", { ...grown, d: `M${l},0V${u}M${u},0V${u}`, class: "pg-limit" }),
        shape("path", { ...grown, d: loose, class: kind }),
        shape("path", { ...grown, d: `M${l},0H0L${u},${u}`, class: "pg-curve" }),
        shape("path", { ...grown, d: exact, class: "pg-exact" }));
      for (const end of [l, u]) {
        const label = shape("text", { x: 75 + scale * (end - (l + u) / 2), y: 97,
          "text-anchor": end === l ? "start" : "end" });
        label.textContent = signed(end);
        svg.append(label);
      }
      return element("figure", {}, element("figcaption", {}, words), svg);
    }));
  }

  /** All units as squares: on, off, unstable; those fixed by a split have a frame. */
  _drawUnits({ units }) {
    const { sizes } = this.data, parts = [];
    let first = 0;
    for (let layer = 1; layer < sizes.length - 1; first += sizes[layer++]) {
      const states = [...units.slice(first, first + sizes[layer])];
      const kind = { A: "on pg-fixed", I: "pg-fixed", a: "on", i: "", u: "half" };
      const words = `${states.filter((s) => s === "u").length} of ${states.length} units unstable`;
      parts.push(element("span", {}, `Layer ${layer} `, element("span", { class: "pg-pattern",
        role: "img", "aria-label": words }, ...states.map((s) =>
        element("i", { class: kind[s] })))));
    }
    const loose = [...units].filter((s) => s === "u").length;
    this.units.replaceChildren(...parts, element("span", {}, `${loose} of ${
      units.length} units can have both signs (half red); framed ones are fixed`));
  }

  _unit(unit) {
    return unitName(unit, this.data.sizes);
  }

  /** What the reader is told, and what the large button says. */
  _tell({ outcome, bounds, margin, split }) {
    const { open, examples, proved, seen } = progress(this.nodes, this.state.split);
    const fixed = path(this.nodes, this.state.node)
      .map(({ unit, sign }) => `${this._unit(unit)} ${sign > 0 ? "on" : "off"}`);
    this.heading.textContent = fixed.length ? `Node ${this.state.node}: ${fixed.join(", ")}` : "Root: the whole disc";
    const bound = signed(bounds.beta);
    const here = {
      split: () => `The bound is ${bound}: nothing is proved. Most is lost in the relaxation of ${
        this._unit(split.unit)}.`,
      proved: () => `The bound is ${bound}, above 0: no point of this node has another class.`,
      empty: () => `The bound is ${bound}, but the units allow no point in its half-space: proved.`,
      example: () => `The margin at ✕ is ${signed(margin)}: a point of another class.`,
    }[outcome]();
    const leaves = seen.length - this.state.split.length;
    const all = leaves > 1 ? `All ${leaves} leaves are proved` : "This is the whole disc";
    const whole = (examples.length && " The disc is not robust.")
      || (proved && ` ${all}: it is robust.`) || ` Open nodes: ${open.length}.`;
    this.say.textContent = here + whole;
    this.say.classList.toggle("pg-done", proved);
    this.go.disabled = proved || examples.length > 0;
    const next = open.includes(this.state.node) ? `Split ${this._unit(split.unit)}`
      : "Go to an open node";
    this.go.textContent = (proved && "Proved") || (examples.length && "Example found") || next;
  }
}

/** Two decimals, three of numbers near 0, and a minus that is one. */
function signed(number) {
  return number.toFixed(Math.abs(number) < 0.005 ? 3 : 2).replace("-", "−");
}

/** Start all trees of the page. */
export function begin(data) {
  return [...document.querySelectorAll(".pg[data-tree]")].map((root) => new Tree(root, data));
}
