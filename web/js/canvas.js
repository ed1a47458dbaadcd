// The canvas node: a drawing of the chosen size with the grids of Stage C and Stage B, aspect ratios, swap, snap, and
// what each stage will need of memory.
import { Panel, button, element, onValues, setValue, shape, valueOf, widen } from "./dom.js";
import { plan, snapped, withAspect } from "./geometry.js";
import { workingMemory } from "./memory.js";
import { size, text } from "./text.js";

const ASPECTS = ["1:1", "5:4", "4:3", "3:2", "16:10", "5:3", "16:9", "2:1", "21:9"];
const PICTURE = { width: 188, height: 116 };
const CELL = { left: 204, top: 14, side: 88 };

class CanvasPanel extends Panel {
  constructor(node) {
    super(node, "canvas", 206);
    this.aspects = element("select", { onchange: () => this.chooseAspect(this.aspects.value) });
    this.swap = button("", "", () => this.resize(valueOf(node, "height"), valueOf(node, "width")));
    this.snap = button("", "", () => this.resize(...snapped(...this.asked().slice(0, 3))));
    this.drawing = shape("svg", { viewBox: "0 0 300 120", role: "img" });
    this.facts = element("div", { className: "facts" });
    this.replace(element("div", { className: "row" }, this.aspects, this.swap, this.snap), this.drawing, this.facts);
    this.drawn = "";
    onValues(node, ["width", "height", "batch_size", "compression", "grid"], () => this.draw());
    this.draw();
  }

  /** Width, height, the compression that was asked for or null, and the rule for the grid. */
  asked() {
    const compression = Number(valueOf(this.node, "compression"));
    const [width, height] = ["width", "height"].map((name) => Number(valueOf(this.node, name)));
    return [width, height, compression > 0 ? compression : null, valueOf(this.node, "grid")];
  }

  resize(width, height) {
    setValue(this.node, "width", width);
    setValue(this.node, "height", height);
    this.draw();
  }

  chooseAspect(name) {
    const [long, short] = name.split(":").map(Number);
    const [width, height] = this.asked();
    if (!long) return;
    this.resize(...(width >= height ? withAspect(width, height, long, short) : withAspect(width, height, short, long)));
  }

  check() {
    if (this.drawn !== this.state()) this.draw();
  }

  state() {
    return [...this.asked(), valueOf(this.node, "batch_size")].join();
  }

  draw() {
    const [width, height, compression, grid] = this.asked();
    this.drawn = this.state();
    const canvas = plan(width, height, compression, grid);
    this.label(width, height);
    this.drawing.setAttribute("aria-label", `${width} x ${height}`);
    if (canvas === null) {
      this.drawing.replaceChildren();
      this.facts.replaceChildren(element("div", { className: "warning", textContent: text("canvas.impossible") }));
      return;
    }
    this.drawing.replaceChildren(...pictureOf(canvas), ...cellOf(canvas));
    this.facts.replaceChildren(...this.lines(canvas));
  }

  label(width, height) {
    const ratio = Math.max(width, height) / Math.min(width, height);
    const near = ASPECTS.find((name) => {
      const [long, short] = name.split(":").map(Number);
      return Math.abs(ratio / (long / short) - 1) < 0.012;
    });
    const custom = element("option", { value: "", textContent: text("canvas.custom") });
    const options = ASPECTS.map((name) => {
      const shownAs = width >= height ? name : name.split(":").reverse().join(":");
      return element("option", { value: name, textContent: shownAs });
    });
    this.aspects.replaceChildren(...(near ? [] : [custom]), ...options);
    this.aspects.value = near ?? "";
    this.aspects.title = text("canvas.aspect");
    this.aspects.ariaLabel = this.aspects.title;
    [this.swap.textContent, this.swap.title] = [text("canvas.swap"), text("canvas.swap_tip")];
    [this.snap.textContent, this.snap.title] = [text("canvas.snap"), text("canvas.snap_tip")];
  }

  lines(canvas) {
    const memory = workingMemory(canvas, Math.max(1, Number(valueOf(this.node, "batch_size")) || 1));
    const grids = text("canvas.grids", {
      columns: canvas.priorWidth,
      rows: canvas.priorHeight,
      across: canvas.decoderWidth,
      down: canvas.decoderHeight,
    });
    const padding = text(canvas.padding > 0 ? "canvas.padding" : "canvas.no_padding", {
      compression: canvas.compression.toFixed(1),
      width: canvas.paddedWidth,
      height: canvas.paddedHeight,
    });
    const needed = text("canvas.memory", { c: size(memory.C), b: size(memory.B), a: size(memory.A) });
    return [
      element("div", { textContent: grids }),
      element("div", { textContent: padding }),
      element("div", { textContent: needed, title: text("canvas.memory_tip") }),
    ];
  }
}

/** The padded picture with Stage C's cells, the picture itself as the bright part. */
function pictureOf(canvas) {
  const scale = Math.min(PICTURE.width / canvas.paddedWidth, PICTURE.height / canvas.paddedHeight);
  const [width, height] = [canvas.paddedWidth * scale, canvas.paddedHeight * scale];
  const [left, top] = [2 + (PICTURE.width - width) / 2, 2 + (PICTURE.height - height) / 2];
  const box = (x, y, w, h, name) => shape("rect", { x, y, width: w, height: h, class: name });
  const inner = [left + canvas.left * scale, top + canvas.top * scale, canvas.width * scale, canvas.height * scale];
  const first = [Math.floor((canvas.priorWidth - 1) / 2), Math.floor((canvas.priorHeight - 1) / 2)];
  const cell = [width / canvas.priorWidth, height / canvas.priorHeight];
  const corner = [left + first[0] * cell[0], top + first[1] * cell[1]];
  const rays = [0, 1].map((end) => {
    const from = `M${corner[0] + cell[0]} ${corner[1] + end * cell[1]}`;
    return shape("path", { class: "ray", d: `${from}L${CELL.left} ${CELL.top + end * CELL.side}` });
  });
  return [
    box(left, top, width, height, "padding"),
    box(...inner, "picture"),
    grid(left, top, width, height, canvas.priorWidth, canvas.priorHeight, "cells"),
    ...rays,
    box(...corner, ...cell, "cell"),
  ];
}

/** One Stage C cell enlarged, with the Stage B latents in it. */
function cellOf(canvas) {
  const across = canvas.decoderWidth / canvas.priorWidth;
  const down = canvas.decoderHeight / canvas.priorHeight;
  const { left, top, side } = CELL;
  const label = shape("text", { x: left + side / 2, y: 10, class: "label" });
  label.textContent = text("canvas.cell");
  return [
    shape("rect", { x: left, y: top, width: side, height: side, class: "picture" }),
    grid(left, top, side, side, across, down, "latents"),
    shape("rect", { x: left, y: top, width: side, height: side, class: "cell" }),
    label,
  ];
}

function grid(left, top, width, height, columns, rows, name) {
  let path = "";
  for (let x = 1; x < columns; x++) path += `M${left + (x * width) / columns} ${top}v${height}`;
  for (let y = 1; y < rows; y++) path += `M${left} ${top + (y * height) / rows}h${width}`;
  return shape("path", { d: path, class: name });
}

export function addCanvas(node) {
  const panel = new CanvasPanel(node);
  panel.show();
  widen(node, 320);
  return panel;
}
