// Text that a node of ours hands to the page (reports on LoRAs, files and runs), shown in the node.
import { Panel, button, element, widgetOf } from "./dom.js";
import { text } from "./text.js";

const LINE = 15;
const MOST_LINES = 16;
/** The host's own place for text under a node; a node that writes there has said it already. */
const HOST_TEXT = "$$node-text-preview";
const panels = new WeakMap();

class TextPanel extends Panel {
  constructor(node) {
    super(node, "text", 60);
    this.words = element("pre");
    this.copy = button("", "", () => navigator.clipboard?.writeText(this.words.textContent));
    this.replace(this.words, this.copy);
    this.draw();
  }

  draw() {
    this.copy.textContent = text("text.copy");
  }

  tell(words) {
    this.words.textContent = words;
    this.resize(16 + LINE * Math.min(MOST_LINES, Math.max(2, words.split("\n").length)));
    this.show();
  }
}

/** Show the `text` of a node's output; nothing is shown where there is none. */
export function tell(node, output) {
  const given = output?.text;
  const words = (Array.isArray(given) ? given.join("\n") : given ?? "").trim();
  if (!words || widgetOf(node, HOST_TEXT)) {
    panels.get(node)?.hide();
    return;
  }
  if (!panels.has(node)) panels.set(node, new TextPanel(node));
  panels.get(node).tell(words);
}
