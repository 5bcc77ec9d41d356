// Linear regions on a canvas, and an empty SVG above it in the coordinates of the plane.

import { classPieces, enumerate, FRAME } from "./core.js";

const SVG = "http://www.w3.org/2000/svg";
export const SIZE = 1000; // of the SVG's own coordinates
const SHADES = [0.2, 0.28, 0.36]; // neighbouring regions differ a little

/** A new element with attributes and children. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made && typeof value !== "string") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** A new element of SVG. */
export function shape(name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export class Picture {
  constructor(frame, label) {
    this.frame = frame;
    this.canvas = element("canvas", { "aria-hidden": "true" });
    this.svg = shape("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, "aria-hidden": "true" });
    this.stage = element("div", { class: "pg-stage", role: "group", "aria-label": label },
      this.canvas, this.svg);
    const paint = () => this.paint();
    new ResizeObserver(paint).observe(this.stage);
    // The colours of the canvas follow the theme.
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
    new MutationObserver(paint).observe(document.body, { attributeFilter: ["data-theme"] });
  }

  /** A new element of the SVG, above those before it. */
  add(name, group) {
    return this.svg.appendChild(shape(name, { class: group }));
  }

  /** Coordinates of the SVG of a place in the plane. */
  at([x, y]) {
    const [x0, y0, x1, y1] = this.frame;
    return [(SIZE * (x - x0)) / (x1 - x0), (SIZE * (y1 - y)) / (y1 - y0)];
  }

  /** Take another network: its regions are found and drawn. */
  setNet(net) {
    if (net === this.net) return;
    this.net = net;
    this.regions = enumerate(net, this.frame);
    this.pieces = this.regions.map(classPieces);
    this.paint();
  }

  /** Draw the regions. */
  paint() {
    if (!this.net) return;
    const width = Math.round(this.stage.clientWidth * Math.min(devicePixelRatio, 2));
    if (!width) return;
    if (this.canvas.width !== width) this.canvas.width = this.canvas.height = width;
    const style = getComputedStyle(this.stage);
    const color = (name) => style.getPropertyValue(`--pg-${name}`).trim();
    const c = this.canvas.getContext("2d"), scale = width / SIZE;
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.clearRect(0, 0, width, width);
    c.setTransform(scale, 0, 0, scale, 0, 0);
    const faces = [color("class0"), color("class1")];
    const seams = new Path2D(), border = new Path2D();
    this.pieces.forEach((pieces, i) => {
      for (const piece of pieces) {
        const face = new Path2D();
        piece.polygon.points.forEach((z, j) => face[j ? "lineTo" : "moveTo"](...this.at(z)));
        c.globalAlpha = SHADES[i % SHADES.length];
        c.fillStyle = faces[piece.class];
        c.fill(face);
        this._edges(piece.polygon, border);
      }
      this._edges(this.regions[i].polygon, seams);
    });
    c.globalAlpha = 1;
    c.strokeStyle = color("seam");
    c.lineWidth = 1.1 / scale;
    c.stroke(seams);
    c.strokeStyle = color("ink");
    c.lineWidth = 3 / scale;
    c.lineCap = "round";
    c.stroke(border);
  }

  _edges({ points, labels }, path) {
    labels.forEach((label, i) => {
      if (label === FRAME) return;
      path.moveTo(...this.at(points[i]));
      path.lineTo(...this.at(points[(i + 1) % points.length]));
    });
  }

  /** The ball of l_p as a path. */
  ballPath(x, radius, p) {
    const [u, v] = this.at(x), r = (radius * SIZE) / (this.frame[2] - this.frame[0]);
    if (p === 2) return `M${u - r},${v}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0z`;
    return p === 1
      ? `M${u - r},${v}l${r},${-r}l${r},${r}l${-r},${r}z`
      : `M${u - r},${v - r}h${2 * r}v${2 * r}h${-2 * r}z`;
  }
}
