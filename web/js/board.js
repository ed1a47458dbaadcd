// The draft board: its pictures are buttons. Clicking them writes their numbers, such as "1,3", into `chosen`.
import { Panel, button, element, onValues, setValue, valueOf, widen } from "./dom.js";
import { addressOf, drawOwnPictures } from "./pictures.js";
import { text } from "./text.js";

/** The numbers in "1, 3-4" or "１，３", each once, that a board with `count` drafts has. */
export function numbersIn(words, count) {
  const found = new Set();
  for (const part of String(words ?? "").normalize("NFKC").split(/[\s,;、،؛]+/)) {
    const [, first, last] = /^(\d+)(?:-(\d+))?$/.exec(part) ?? [];
    for (let number = Number(first); number <= Math.min(count, 4096, Number(last ?? first)); number++) {
      if (number >= 1) found.add(number);
    }
  }
  return [...found].sort((a, b) => a - b);
}

class BoardPanel extends Panel {
  constructor(node) {
    super(node, "board", 300);
    this.board = null;
    this.hint = element("div", { className: "hint" });
    this.all = button("", "", () => this.choose([]));
    this.picture = element("img", { draggable: false, onerror: () => this.unpin() });
    this.sheet = element("div", { className: "sheet" });
    this.frame = element("div", { className: "frame" }, this.sheet);
    this.replace(element("div", { className: "row" }, this.hint, this.all), this.frame);
    onValues(node, ["chosen"], () => this.draw());
    this.draw();
  }

  get chosen() {
    return numbersIn(valueOf(this.node, "chosen"), this.board?.drafts.length ?? Infinity);
  }

  choose(numbers) {
    setValue(this.node, "chosen", numbers.join(","));
    this.draw();
  }

  toggle(number) {
    const others = this.chosen.filter((one) => one !== number);
    const chosen = others.length < this.chosen.length ? others : [...others, number];
    this.choose(chosen.sort((a, b) => a - b));
  }

  /** The sheet of a run, and where on it each draft lies, in pixels of the sheet. */
  pin(image, board) {
    this.board = board;
    this.picture.src = addressOf(image);
    const across = (value) => `${(100 * value) / board.width}%`;
    const down = (value) => `${(100 * value) / board.height}%`;
    const places = board.drafts.map((draft) => {
      const title = draft.seed === null ? `${draft.number}` : `${draft.number} · ${draft.seed}`;
      const place = element("button", { type: "button", title, data: { number: draft.number } });
      const known = draft.seed === null ? "board.draft" : "board.draft_seed";
      place.ariaLabel = text(known, { number: draft.number, seed: draft.seed });
      place.onclick = () => this.toggle(draft.number);
      Object.assign(place.style, { left: across(draft.left), width: across(draft.width) });
      Object.assign(place.style, { top: down(draft.top), height: down(draft.height) });
      return place;
    });
    this.sheet.style.setProperty("--ratio", board.width / board.height);
    this.sheet.replaceChildren(this.picture, ...places);
    this.draw();
  }

  /** The server no longer has the sheet: it keeps those of its own run alone. */
  unpin() {
    this.board = null;
    this.sheet.replaceChildren();
    this.draw();
  }

  draw() {
    const chosen = this.chosen;
    const hint = text(this.board ? "board.hint" : "board.waiting");
    this.picture.alt = ""; // its drafts have names of their own
    this.hint.textContent = chosen.length ? text("board.chosen", { numbers: chosen.join(", ") }) : hint;
    this.all.textContent = text("board.none");
    this.all.hidden = chosen.length === 0;
    for (const place of this.sheet.querySelectorAll("button")) {
      const isChosen = chosen.includes(Number(place.dataset.number));
      place.classList.toggle("chosen", isChosen);
      place.ariaPressed = String(isChosen);
    }
  }
}

export function addBoard(node) {
  drawOwnPictures(node);
  const panel = new BoardPanel(node).show();
  widen(node, 420);
  return {
    pin(output) {
      const board = output?.cascade_studio_drafts?.[0];
      if (board && output.images?.length) panel.pin(output.images[0], board);
    },
  };
}
