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

/** A part of a node below its widgets, `height` pixels high. It is never saved and never sent. */
export class Panel {
  constructor(node, name, height) {
    this.node = node;
    this.name = `cascade_studio_${name}`;
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

  get shown() {
    return this.widget !== null;
  }

  show() {
    if (this.shown) return this;
    this.widget = this.node.addDOMWidget(this.name, "CASCADE_STUDIO", this.root, {
      serialize: false,
      hideOnZoom: false,
      hideInPanel: true,
      margin: MARGIN,
      getMinHeight: () => this.height + 2 * MARGIN,
      onDraw: () => this.check(),
    });
    this.widget.serialize = false;
    const [width, height] = this.node.computeSize();
    const size = this.node.size;
    this.node.setSize([Math.max(size[0], width), Math.max(size[1], height)]);
    if (this.node.graph) app.canvas?.bringToFront?.(this.node);
    this.node.setDirtyCanvas(true, true);
    return this;
  }

  hide() {
    if (!this.shown) return;
    this.node.removeWidget(this.widget);
    this.widget = null;
    this.root.remove();
    const size = this.node.size;
    const least = this.node.computeSize()[1];
    this.node.setSize([size[0], Math.max(least, size[1] - this.height - 2 * MARGIN)]);
    this.node.setDirtyCanvas(true, true);
  }

  replace(...children) {
    this.root.replaceChildren(...children);
  }

  /** Make room for what is inside, which needs `height` pixels. */
  resize(height) {
    if (height === this.height) return;
    const shown = this.shown;
    const change = height - this.height;
    this.height = height;
    this.root.style.minHeight = `${height}px`;
    if (!shown) return;
    const size = this.node.size;
    this.node.setSize([size[0], Math.max(this.node.computeSize()[1], size[1] + change)]);
    this.node.setDirtyCanvas(true, true);
  }
}
