// The draft board: its pictures are buttons. Clicking them writes their numbers, such as "1,3", into `chosen`.
import { Panel, element, onValues, setValue, valueOf, button } from "./dom.js";
import { addressOf, drawOwnPictures } from "./pictures.js";
import { text } from "./text.js";

/** The numbers in "1, 3-4" that a board with `count` pictures has. */
export function numbersIn(words, count) {
  const found = new Set();
  for (const part of String(words ?? "").split(/[\s,;]+/)) {
    const [, first, last] = /^(\d+)(?:-(\d+))?$/.exec(part) ?? [];
    for (let number = Number(first); number <= Math.min(count, Number(last ?? first)); number++) {
      if (number >= 1) found.add(number);
    }
  }
  return [...found].sort((a, b) => a - b);
}

class BoardPanel extends Panel {
  constructor(node) {
    super(node, "board", 60);
    this.count = 0;
    this.hint = element("div", { className: "hint" });
    this.all = button("", "", () => this.choose([]));
    this.pictures = element("div", { className: "pictures" });
    this.replace(element("div", { className: "row" }, this.hint, this.all), this.pictures);
    onValues(node, ["chosen"], () => this.draw());
    this.draw();
  }

  get chosen() {
    return numbersIn(valueOf(this.node, "chosen"), Math.max(this.count, 4096));
  }

  choose(numbers) {
    setValue(this.node, "chosen", numbers.join(","));
    this.draw();
  }

  toggle(number) {
    const chosen = this.chosen;
    this.choose(chosen.includes(number) ? chosen.filter((one) => one !== number) : [...chosen, number].sort((a, b) => a - b));
  }

  /** The drafts of a run, one picture each. */
  pin(images, seeds = []) {
    this.count = images.length;
    const across = Math.ceil(Math.sqrt(images.length)) || 1;
    this.pictures.style.gridTemplateColumns = `repeat(${across}, 1fr)`;
    this.pictures.replaceChildren(
      ...images.map((image, index) => {
        const number = index + 1;
        const label = seeds[index] === undefined ? `${number}` : `${number} · ${seeds[index]}`;
        const picture = element("img", { src: addressOf(image), draggable: false, alt: label });
        const children = [picture, element("span", { textContent: label })];
        const press = () => this.toggle(number);
        return element("button", { type: "button", data: { number }, title: label, onclick: press }, ...children);
      }),
    );
    this.resize(40 + 110 * Math.ceil(images.length / across));
    this.draw();
  }

  draw() {
    const chosen = this.chosen;
    this.hint.textContent = chosen.length ? text("board.chosen", { numbers: chosen.join(", ") }) : text("board.hint");
    this.all.textContent = text("board.all");
    for (const picture of this.pictures.children) {
      picture.classList.toggle("chosen", chosen.includes(Number(picture.dataset.number)));
    }
  }
}

export function addBoard(node) {
  drawOwnPictures(node);
  const panel = new BoardPanel(node).show();
  return { pin: (output) => output?.images && panel.pin(output.images, output.seeds) };
}
