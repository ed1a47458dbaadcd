// Elements, and panels: parts of a node that this extension draws.
import { app } from "../../../scripts/app.js";

/** An element with properties (`style`, `on...`, `data` and attributes among them) and children. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "data") Object.assign(made.dataset, value);
    else if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** The same for SVG, whose attributes are no properties. */
export function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function button(words, title, press) {
  return element("button", { type: "button", textContent: words, title, onclick: press });
}

/** Load the style sheet once. */
export function addStyles() {
  const href = new URL("../css/studio.css", import.meta.url).href;
  document.head.append(element("link", { rel: "stylesheet", href }));
}

export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

export function valueOf(node, name) {
  return widgetOf(node, name)?.value;
}

/** Set a widget as a hand would: its callback hears of it, the graph is redrawn. */
export function setValue(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value);
  node.setDirtyCanvas(true, true);
}

/** Call `listener` after one of the named widgets, or the whole node, has got new values. */
export function onValues(node, names, listener) {
  for (const name of names) {
    const widget = widgetOf(node, name);
    if (!widget) continue;
    const before = widget.callback;
    widget.callback = function (...given) {
      const result = before?.apply(this, given);
      listener();
      return result;
    };
  }
  after(node, "onConfigure", listener);
  // The host may put kept values into widgets when the node comes into a graph.
  after(node, "onAdded", () => setTimeout(listener));
}

/** Let `listener` run after a handler of this one node, with the same arguments. */
export function after(node, handler, listener) {
  const before = node[handler];
  node[handler] = function (...given) {
    const result = before?.apply(this, given);
    listener(...given);
    return result;
  };
}

const MARGIN = 6;

/** The panels whose nodes are in a graph. */
export const live = new Set();

/** Nodes whose panels come and go: the height that they have without them, and the one that a panel gave them. */
const heights = new WeakMap();

/** Whether what is in a node has just pushed its lower edge: with no panel of ours that edge is the user's. */
const isPushed = (node) => heights.has(node) && Math.abs(node.size[1] - heights.get(node).pushed) < 1;

/**
 * A part of a node below its widgets that wants `height` pixels and takes what room the node has beyond. It is never
 * saved and never sent. A panel that stays has its room in the saved size; one that comes and goes has not: the node
 * grows for it where it has no room, and gets its own height back.
 */
export class Panel {
  constructor(node, name, height, widgetName = `cascade_studio_${name}`) {
    this.node = node;
    this.name = widgetName;
    this.height = height;
    this.root = element("div", { className: `cascade-studio cascade-studio-${name}` });
    this.root.style.minHeight = `${height}px`;
    this.widget = null;
    if (node.graph) live.add(this);
    after(node, "onAdded", () => live.add(this));
    after(node, "onRemoved", () => live.delete(this));
  }

  /** Draw what it shows anew, for another language too. */
  draw() {}

  /** Called with every frame of the host's canvas: draw anew if something was changed behind the widgets' backs. */
  check() {}

  /** What the host writes into a widget of this panel's name. */
  write(value) {}

  get shown() {
    return this.widget !== null;
  }

  /** Show it for good, from the node's making on. */
  show() {
    if (this.shown) return this;
    this.widget = this.node.addDOMWidget(this.name, "CASCADE_STUDIO", this.root, {
      serialize: false,
      hideOnZoom: false,
      hideInPanel: true,
      margin: MARGIN,
      getMinHeight: () => this.height + 2 * MARGIN,
      setValue: (value) => this.write(value),
      onDraw: () => this.check(),
    });
    this.widget.serialize = false;
    this.fit();
    if (this.node.graph) app.canvas?.bringToFront?.(this.node);
    return this;
  }

  /** Show it for a while: the node's own height is kept, in the saved workflow too. */
  appear() {
    if (this.shown) return this;
    const own = isPushed(this.node) ? heights.get(this.node).own : this.node.size[1];
    if (!heights.has(this.node)) after(this.node, "onSerialize", (data) => saveOwnHeight(this.node, data));
    this.show();
    heights.set(this.node, { own, pushed: this.node.size[1] });
    return this;
  }

  hide() {
    if (!this.shown) return;
    this.node.removeWidget(this.widget);
    this.widget = null;
    this.root.remove();
    if (isPushed(this.node)) {
      const { own } = heights.get(this.node);
      this.node.setSize([this.node.size[0], Math.max(own, this.node.computeSize()[1])]);
      heights.set(this.node, { own, pushed: this.node.size[1] });
    }
    this.node.setDirtyCanvas(true, true);
  }

  replace(...children) {
    this.root.replaceChildren(...children);
  }

  /** From now on it wants `height` pixels. */
  resize(height) {
    if (height === this.height) return;
    this.height = height;
    this.root.style.minHeight = `${height}px`;
    if (this.shown) this.fit();
  }

  /** Let the node be large enough for what is in it. One that has the room keeps its size. */
  fit() {
    const { node } = this;
    const pushed = isPushed(node);
    const least = node.computeSize();
    const size = [Math.max(node.size[0], least[0]), Math.max(node.size[1], least[1])];
    if (size[0] !== node.size[0] || size[1] !== node.size[1]) node.setSize(size);
    if (pushed) heights.get(node).pushed = node.size[1];
    node.setDirtyCanvas(true, true);
  }
}

function saveOwnHeight(node, data) {
  if (isPushed(node)) data.size = [node.size[0], heights.get(node).own];
}

/** Let a new node be at least `width` pixels wide. */
export function widen(node, width) {
  node.setSize([Math.max(node.size[0], width), node.size[1]]);
}
