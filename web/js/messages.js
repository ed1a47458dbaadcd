// What nodes say while they run (errors, refusals, notes, reports) in the user's language. The server says it in
// English to everybody; the page looks it up in web/messages/<language>.json before anything shows it.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { PREFIX, isOurs, nodeOf } from "./graph.js";
import { makeTranslator } from "./templates.js";
import { languages, onLanguage } from "./text.js";

/** What the host puts before a sentence: that a node was blocked by it, or the input that it is about. */
const BEFORE = /^(Execution Blocked: |\S+ - )?([^]*)$/;
/** How often, in milliseconds, and how many times it is looked whether the host has refused a prompt. */
const [AGAIN, MOST_LOOKS] = [100, 300];

const english = (text) => text;
let translate = english;
let language = "en";

/** A text of the server in the user's language; as it is where it is not known. */
export const say = (text) => (typeof text === "string" && text ? translate(text) : text);

function sayAfter(text) {
  if (typeof text !== "string") return text;
  const [, before = "", rest] = BEFORE.exec(text);
  return before + say(rest);
}

/** Fetch the messages of the language that is chosen now; none for English. */
async function load() {
  const wanted = languages();
  if (wanted[0] === language) return;
  [language] = wanted;
  translate = english;
  try {
    for (const name of wanted.includes("en") ? [] : wanted) {
      const answer = await fetch(new URL(`../messages/${name}.json`, import.meta.url));
      if (!answer.ok) continue;
      const table = await answer.json();
      if (wanted[0] === language) translate = makeTranslator(table);
      return;
    }
  } catch (error) {
    console.warn("Cascade Studio: messages stay in English.", error);
  }
}

/** Change what a message of the server says, before the host's own listeners hear it. */
function hear(name, change) {
  const listener = ({ detail }) => {
    if (translate !== english && detail && typeof detail === "object") change(detail);
  };
  api.addEventListener(name, listener, { capture: true });
}

/** The sentences of a refused prompt, which the host keeps by node. */
function sayRefusals(refused) {
  for (const node of Object.values(refused ?? {})) {
    if (!String(node?.class_type).startsWith(PREFIX)) continue;
    for (const error of node.errors ?? []) {
      const said = sayAfter(error.details);
      if (said !== error.details) error.details = said;
    }
  }
}

/** Until the prompt is taken or refused: the host tells nobody of a refusal, and keeps it in `lastNodeErrors`. */
function awaitRefusal() {
  let looks = 0;
  const end = () => clearInterval(timer);
  const timer = setInterval(() => {
    looks += 1;
    if (translate !== english) sayRefusals(app.lastNodeErrors);
    if (app.lastNodeErrors || looks >= MOST_LOOKS) end();
  }, AGAIN);
  api.addEventListener("execution_start", end, { once: true });
}

export function listenToMessages() {
  hear("execution_error", (detail) => {
    detail.exception_message = sayAfter(detail.exception_message);
  });
  hear("progress_text", (detail) => {
    if (isOurs(nodeOf(detail.nodeId))) detail.text = say(detail.text);
  });
  hear("executed", ({ node, output }) => {
    if (Array.isArray(output?.text) && isOurs(nodeOf(node))) output.text = output.text.map(say);
  });
  api.addEventListener("promptQueueing", awaitRefusal);
  onLanguage(load);
}
