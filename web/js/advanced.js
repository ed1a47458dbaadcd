// Advanced inputs in the host's older renderer: folded away behind a button, as its newer one does by itself.
import { app } from "../../../scripts/app.js";
import { after } from "./dom.js";
import { text } from "./text.js";

const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets";
const always = () => Boolean(app.extensionManager?.setting?.get?.(ALWAYS));

/** Fold the inputs of a node that its definition calls advanced; one with a wire stays in sight. */
export function foldAdvanced(node) {
  const folded = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
  if (folded.length < 2) return; // a button in place of one row saves nothing
  for (const widget of folded) {
    const isWired = () => node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null);
    Object.defineProperty(widget, "hidden", {
      configurable: true,
      get: () => !node.showAdvanced && !always() && !isWired(),
      set: () => {}, // the definition says so, not who draws it
    });
  }
  const toggle = node.addWidget("button", "cascade_studio_advanced", null, () => flip(node), { serialize: false });
  toggle.serialize = false;
  toggle.options.hidden = true; // the newer renderer has a button of its own
  const name = () => {
    const words = node.showAdvanced ? text("advanced.hide") : text("advanced.show", { count: folded.length });
    toggle.label = words;
  };
  toggle.retell = name;
  name();
  after(node, "onConfigure", name);
  node.setSize([node.size[0], node.computeSize()[1]]); // a restored node gets its saved size after this
}

/** Name the buttons anew, after the language was changed. */
export function retell(nodes) {
  for (const node of nodes) for (const widget of node.widgets ?? []) widget.retell?.();
}

function flip(node) {
  const [width, height] = node.size;
  const spare = height - node.computeSize()[1];
  node.showAdvanced = !node.showAdvanced;
  retell([node]);
  node.setSize([width, node.computeSize()[1] + Math.max(0, spare)]);
  node.setDirtyCanvas(true, true);
}
