// Settings by task: a choice of the samplers that fills in their numbers. The server reads the numbers alone.
import { onValues, setValue, valueOf, widgetOf } from "./dom.js";

const SETTINGS = "settings";

/** The numbers of each task, as the definition of the node has them. */
function tasksOf(node) {
  const { required = {}, optional = {} } = node.constructor?.nodeData?.input ?? {};
  return (optional[SETTINGS] ?? required[SETTINGS])?.[1]?.tasks;
}

export function addSettings(node) {
  const [tasks, widget] = [tasksOf(node), widgetOf(node, SETTINGS)];
  if (!tasks || !widget) return;
  const [own] = widget.options.values;
  const names = Object.keys(Object.values(tasks)[0]);
  let isFilling = false;
  const fits = (numbers) => names.every((name) => Number(valueOf(node, name)) === numbers[name]);

  /** A number was changed by hand: the choice no longer says what the node does. */
  function settle() {
    const numbers = tasks[widget.value];
    if (!isFilling && numbers && !fits(numbers)) setValue(node, SETTINGS, own);
  }

  function fill() {
    const numbers = tasks[widget.value];
    if (!numbers || isFilling) return;
    isFilling = true;
    for (const name of names) setValue(node, name, numbers[name]);
    isFilling = false;
  }

  const before = widget.callback;
  widget.callback = function (...given) {
    const result = before?.apply(this, given);
    fill();
    return result;
  };
  onValues(node, names, settle);
}
