// Notes and titles of the bundled workflows in the user's language, as web/notes/<language>.json has them.
import { app } from "../../../scripts/app.js";
import { allNodes } from "./graph.js";
import { languages } from "./text.js";

// As tools/blocks.py cuts them: paragraphs, headings, items and rows of tables are translated one by one.
const CUT = /(```[^]*?```|\n{2,}|\n(?= *(?:[-*] |\d+\. )|#|\|))/;

/** A note with each block that the table has in its words. */
export function translateNote(note, table) {
  const translated = (part) => {
    const block = part.replace(/\n+$/, "");
    const words = table[block.replace(/\n */g, " ")];
    return words === undefined ? part : words + part.slice(block.length);
  };
  return note.split(CUT).map((part, index) => (index % 2 ? part : translated(part))).join("");
}

/** Texts by their English in the user's language; undefined where it is English or there is none. */
async function fetchTable() {
  for (const language of languages().filter((name) => name !== "en")) {
    const answer = await fetch(new URL(`../notes/${language}.json`, import.meta.url));
    if (answer.ok) return await answer.json();
  }
  return undefined;
}

const isNote = (node) => node.type === "MarkdownNote" || node.type === "Note";

/** Translate a graph that is one of ours: at least one block of a note is in the table. The user's own words stay. */
export function translateGraph(graph, nodes, table) {
  let ours = false;
  for (const node of nodes.filter(isNote)) {
    const widget = node.widgets?.[0];
    const said = widget && translateNote(String(widget.value), table);
    if (!widget || said === widget.value) continue;
    widget.value = said;
    ours = true;
  }
  if (!ours) return false;
  for (const titled of [...nodes, ...(graph.groups ?? graph._groups ?? [])]) {
    if (titled.title in table) titled.title = table[titled.title];
  }
  return true;
}

async function translate() {
  const graph = app.rootGraph ?? app.graph;
  try {
    const table = await fetchTable();
    const same = graph === (app.rootGraph ?? app.graph);
    if (table && same && translateGraph(graph, [...allNodes(graph)], table)) graph.setDirtyCanvas?.(true, true);
  } catch (error) {
    console.warn("Cascade Studio: the notes stay in English.", error);
  }
}

app.registerExtension({ name: "CascadeStudio.Notes", afterConfigureGraph: translate });
