// The draft board: its pictures are buttons. Clicking them writes their numbers, such as "1,3", into `chosen`.
import { Panel, element, onValues, setValue, valueOf, button } from "./dom.js";
import { addressOf, drawOwnPictures } from "./pictures.js";
import { text } from "./text.js";

/** The numbers in "1, 3-4", each once, that a board with `count` drafts has. */
export function numbersIn(words, count) {
  const found = new Set();
  for (const part of String(words ?? "").split(/[\s,;]+/)) {
    const [, first, last] = /^(\d+)(?:-(\d+))?$/.exec(part) ?? [];
    for (let number = Number(first); number <= Math.min(count, 4096, Number(last ?? first)); number++) {
      if (number >= 1) found.add(number);
    }
  }
  return [...found].sort((a, b) => a - b);
}

class BoardPanel extends Panel {
  constructor(node) {
    super(node, "board", 48);
    this.board = null;
    this.hint = element("div", { className: "hint" });
    this.all = button("", "", () => this.choose([]));
    this.picture = element("img", { draggable: false });
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
      place.onclick = () => this.toggle(draft.number);
      Object.assign(place.style, { left: across(draft.left), width: across(draft.width) });
      Object.assign(place.style, { top: down(draft.top), height: down(draft.height) });
      return place;
    });
    this.sheet.style.aspectRatio = `${board.width} / ${board.height}`;
    this.sheet.replaceChildren(this.picture, ...places);
    const width = Math.max(200, this.node.size[0] - 20);
    this.resize(32 + Math.round(Math.min(720, (width * board.height) / board.width)));
    this.draw();
  }

  draw() {
    const chosen = this.chosen;
    this.hint.textContent = chosen.length ? text("board.chosen", { numbers: chosen.join(", ") }) : text("board.hint");
    this.all.textContent = text("board.none");
    this.all.hidden = chosen.length === 0;
    for (const place of this.sheet.querySelectorAll("button")) {
      place.classList.toggle("chosen", chosen.includes(Number(place.dataset.number)));
    }
  }
}

export function addBoard(node) {
  drawOwnPictures(node);
  const panel = new BoardPanel(node).show();
  const size = node.size;
  node.setSize([Math.max(size[0], 420), size[1]]);
  return {
    pin(output) {
      const board = output?.cascade_studio_drafts?.[0];
      if (board && output.images?.length) panel.pin(output.images[0], board);
    },
  };
}
