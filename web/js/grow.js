// Inputs that grow: of picture 1 to 8 with their weights, those in use are in sight, and one more to wire. All of them
// stay in the node in their places, since saved wires and values go by place.
import { after, widgetOf } from "./dom.js";

const PICTURE = /^image_(\d+)$/;
const weightOf = (number) => `weight_${number}`;

export function addGrowth(node) {
  const slots = () => node.inputs.filter(({ name }) => PICTURE.test(name));
  const numberOf = (slot) => Number(PICTURE.exec(slot.name)[1]);
  const inUse = () => Math.max(0, ...slots().filter(({ link }) => link != null).map(numberOf));
  const pictures = slots().map(numberOf);
  let shown = Infinity;
  let restored = 0; // the saved height

  const weights = pictures.slice(1).map((number) => [number, widgetOf(node, weightOf(number))]);

  /** A slot of a widget that is not in sight is not drawn either, in both renderers. */
  function fit() {
    const wanted = Math.min(pictures.length, inUse() + 1);
    if (wanted === shown) return;
    const spare = Number.isFinite(shown) ? Math.max(0, node.size[1] - node.computeSize()[1]) : null;
    shown = wanted;
    for (const slot of slots()) {
      const isShown = numberOf(slot) <= shown;
      slot.widget = isShown ? undefined : { name: weightOf(numberOf(slot)) };
      if (isShown) slot.pos = undefined; // the host's, for a slot beside a widget
    }
    for (const [number, widget] of weights) {
      widget.hidden = number >= shown;
      // The newer renderer reads options, of a widget that was there before undo or another tab its former ones.
      for (const options of [widget.options, widget._state?.options]) if (options) options.hidden = widget.hidden;
    }
    for (const list of ["inputs", "widgets"]) {
      const kept = [...node[list]];
      node[list] = []; // the newer renderer looks again at a list that has changed
      node[list] = kept;
    }
    const least = node.computeSize()[1];
    node.setSize([node.size[0], spare === null ? Math.max(least, restored) : least + spare]);
    node.setDirtyCanvas(true, true);
  }

  after(node, "onConfigure", (data) => {
    restored = data.size?.[1] ?? 0;
    shown = Infinity; // the host has put the saved inputs in the place of ours
    setTimeout(fit);
  });
  after(node, "onConnectionsChange", () => setTimeout(fit));
  after(node, "onSerialize", (data) => {
    for (const slot of data.inputs ?? []) if (PICTURE.test(slot.name)) delete slot.widget;
  });
  fit();
}
