// Text that a node of ours hands to the page (reports on LoRAs, files and runs), shown in the node.
import { Panel, button, element, widgetOf } from "./dom.js";
import { say } from "./messages.js";
import { text } from "./text.js";

const [LINE, LETTER] = [15, 6.7];
const MOST_LINES = 16;
/** The name of the host's own place for text under a node: a panel that has it is written into by the host. */
export const HOST_TEXT = "$$node-text-preview";

/** Nodes that have something to tell after every run keep the room for it: kind → lines. */
const TELLING = {
  CascadeStudio_LoadLora: 6,
  CascadeStudio_ApplyLoraStack: 6,
  CascadeStudio_LoadHookLora: 6,
  CascadeStudio_ReportCard: 14,
};
const panels = new WeakMap();

class TextPanel extends Panel {
  constructor(node, lines, name) {
    super(node, "text", roomFor(lines), name);
    this.said = "";
    this.words = element("pre");
    this.copy = button("", "", () => navigator.clipboard?.writeText(this.said));
    this.replace(this.words, this.copy);
    this.draw();
  }

  draw() {
    this.words.textContent = this.said || text("text.waiting");
    this.words.classList.toggle("hint", !this.said);
    this.copy.textContent = text("text.copy");
    this.copy.hidden = !this.said;
  }

  write(value) {
    this.tell(say(String(value ?? "")));
  }

  tell(words) {
    this.said = words;
    this.draw();
  }
}

const roomFor = (lines) => 16 + LINE * Math.min(MOST_LINES, Math.max(2, lines));

/** How many lines of a node's width `words` take. */
const linesOf = (words, width) =>
  words.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil((LETTER * line.length) / (width - 30))), 0);

/** Samplers have room for a preview and a note of two lines; a longer one is scrolled. */
const sharesRoom = (node) => widgetOf(node, "cascade_studio_stages") !== undefined;

/** The room for what this node tells, if it always does. */
export function addReport(node, kind) {
  if (kind in TELLING) panels.set(node, new TextPanel(node, TELLING[kind], HOST_TEXT).show());
}

/** Show the `text` of a node's output; nothing is shown where there is none. */
export function tell(node, output) {
  const given = output?.text;
  const words = say((Array.isArray(given) ? given.join("\n") : given ?? "").trim());
  const panel = panels.get(node);
  if (panel?.name === HOST_TEXT) {
    panel.tell(words);
  } else if (!words || widgetOf(node, HOST_TEXT)) {
    panel?.hide(); // where the host has a place of its own for text, it has said it already
  } else {
    const made = panel ?? new TextPanel(node, 2);
    panels.set(node, made);
    made.tell(words);
    const lines = linesOf(words, node.size[0]);
    made.appear().resize(roomFor(sharesRoom(node) ? 2 : lines));
  }
}
