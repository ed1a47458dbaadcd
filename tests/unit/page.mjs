// The page's side without a page: web/js/messages.js between a host that only sends, and listeners that only note.
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, web, language] = process.argv.slice(2);
const scripts = `${folder}/scripts`;
const js = `${folder}/extensions/cascade-studio/js`;
for (const made of [scripts, js]) mkdirSync(made, { recursive: true });
cpSync(`${web}/js`, js, { recursive: true });
// Browsers call those that capture first, at the target too; Node's own EventTarget does not.
writeFileSync(
  `${scripts}/api.js`,
  `const [first, then] = [new EventTarget(), new EventTarget()];
   export const api = {
     addEventListener: (name, listener, options) =>
       (options?.capture ? first : then).addEventListener(name, listener, options),
     dispatchEvent: ({ type, detail }) =>
       [first, then].forEach((part) => part.dispatchEvent(new CustomEvent(type, { detail }))),
   };`,
);
writeFileSync(
  `${scripts}/app.js`,
  `export const app = { extensionManager: { setting: { get: () => ${JSON.stringify(language)} } }, lastNodeErrors: null,
   rootGraph: { getNodeById: (id) => ({ 5: { type: "CascadeStudio_ReportCard" }, 6: { type: "ShowText" } })[id] ?? null }
 };`,
);
const asked = [];
globalThis.fetch = async (url) => {
  asked.push(String(url).split("/").slice(-2).join("/"));
  const text = readFileSync(`${web}/${asked.at(-1)}`, "utf8");
  return { ok: true, json: async () => JSON.parse(text) };
};

const load = (path) => import(pathToFileURL(path).href);
const [{ api }, { app }] = [await load(`${scripts}/api.js`), await load(`${scripts}/app.js`)];
const heard = [];
for (const name of ["execution_error", "executed", "progress_text"]) {
  api.addEventListener(name, ({ detail }) => heard.push(structuredClone(detail))); // before ours, as the host's are
}
api.fetchApi = async () => ({ ok: false });
const [{ listenToMessages }, { loadTexts }] = [await load(`${js}/messages.js`), await load(`${js}/text.js`)];
listenToMessages();
await loadTexts();
await new Promise((resolve) => setTimeout(resolve, 50));

const { events, refused } = JSON.parse(readFileSync(0, "utf8"));
for (const [name, detail] of events) api.dispatchEvent(new CustomEvent(name, { detail }));
api.dispatchEvent(new CustomEvent("promptQueueing"));
app.lastNodeErrors = refused;
await new Promise((resolve) => setTimeout(resolve, 250));
process.stdout.write(JSON.stringify({ heard, refused, asked }));
