// Two pictures in one place: a slider between before and after, or both side by side; batches in pairs.
import { Panel, button, element, widen } from "./dom.js";
import { addressOf, drawOwnPictures } from "./pictures.js";
import { text } from "./text.js";

class ComparePanel extends Panel {
  constructor(node) {
    super(node, "compare", 320);
    this.pairs = [];
    this.at = 0;
    this.side = false;
    this.before = element("img", { draggable: false });
    this.after = element("img", { draggable: false });
    this.line = element("i", { className: "line" });
    this.names = ["before", "after"].map((name) => element("span", { className: `name ${name}` }));
    this.stage = element("div", { className: "pair" }, this.before, this.after, this.line, ...this.names);
    this.stage.addEventListener("pointermove", (event) => this.slide(event));
    this.stage.addEventListener("pointerdown", (event) => this.slide(event));
    this.mode = button("", "", () => this.setSide(!this.side));
    this.back = button("‹", "", () => this.turn(-1));
    this.next = button("›", "", () => this.turn(1));
    this.count = element("span", { className: "hint" });
    this.replace(this.stage, element("div", { className: "row" }, this.mode, this.back, this.count, this.next));
    this.setShare(0.5);
    this.draw();
  }

  /** The pictures of a run. One picture on one side is compared with each on the other. */
  pin(before, after) {
    const count = Math.max(before.length, after.length);
    const pick = (list, index) => list[Math.min(index, list.length - 1)];
    this.pairs = Array.from({ length: count }, (_, index) => [pick(before, index), pick(after, index)]);
    this.at = Math.min(this.at, Math.max(0, count - 1));
    this.load();
    this.draw();
  }

  turn(step) {
    this.at = (this.at + step + this.pairs.length) % this.pairs.length;
    this.load();
    this.draw();
  }

  load() {
    const [before, after] = this.pairs[this.at] ?? [];
    if (before) this.before.src = addressOf(before);
    if (after) this.after.src = addressOf(after);
  }

  setSide(side) {
    this.side = side;
    this.draw();
  }

  slide(event) {
    if (this.side || (event.type === "pointermove" && event.pointerType !== "mouse" && !event.buttons)) return;
    const box = this.stage.getBoundingClientRect();
    if (box.width) this.setShare((event.clientX - box.left) / box.width);
  }

  setShare(share) {
    this.stage.style.setProperty("--share", `${Math.round(1000 * Math.min(1, Math.max(0, share))) / 10}%`);
  }

  draw() {
    const empty = this.pairs.length === 0;
    this.stage.classList.toggle("side", this.side);
    this.stage.classList.toggle("empty", empty);
    this.stage.dataset.hint = empty ? text("compare.waiting") : "";
    this.names.forEach((name, index) => (name.textContent = text(index ? "compare.after" : "compare.before")));
    this.before.alt = text("compare.before");
    this.after.alt = text("compare.after");
    this.mode.textContent = text(this.side ? "compare.slider" : "compare.side");
    const many = this.pairs.length > 1;
    for (const part of [this.back, this.count, this.next]) part.hidden = !many;
    const named = (number) => text("compare.pair", { number, count: this.pairs.length });
    this.back.ariaLabel = named(this.at || this.pairs.length);
    this.next.ariaLabel = named(((this.at + 1) % (this.pairs.length || 1)) + 1);
    this.count.textContent = text("compare.pair", { number: this.at + 1, count: this.pairs.length });
  }
}

export function addCompare(node) {
  drawOwnPictures(node);
  const panel = new ComparePanel(node).show();
  widen(node, 420);
  return { pin: (output) => output?.before && output?.after && panel.pin(output.before, output.after) };
}
