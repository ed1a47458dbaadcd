// Sentences of the server in another language: found among templates whose places, {0} {1}, may hold known texts too.

const SENTENCE = /(?<=[.!?])(\s+)/;
const PIECE = /([,;:]\s+|\s*[()]\s*|[.,;:]$)/;
/** A sentence may hold this many ends of sentences in its places, as names of files do. */
const MOST_ENDS = 4;
/** A text with marks in itself has so many parts, marks among them, at the most. */
const MOST_PARTS = 9;
/** Letters that a template needs to be looked for in what is not the place of another one. */
const ENOUGH = 10;
const EDGES = /^([\s,;:(]*)([^]*?)([\s,;:]*)$/;

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
/** How much a template says beside its places; a whole sentence is harder to mistake than a part of one. */
const sizeOf = (text) => text.replace(/\{\d+\}|[^\p{L}]/gu, "").length * (text.endsWith(".") ? 2 : 1);

function compile([english, words]) {
  const pattern = english.split(/\{\d+\}/).map(escaped).join("([^]*?)");
  return { words, size: sizeOf(english), pattern: new RegExp(`^${pattern}$`) };
}

/** A function that says a text of the server as `templates` and `names` have it, and leaves the rest as it is. */
export function makeTranslator({ templates = {}, names = {} }) {
  const whole = new Map(Object.entries(templates));
  const open = Object.entries(templates).filter(([english]) => english.includes("{0}")).map(compile);
  open.sort((one, other) => other.size - one.size);

  /** The words for a sentence, or undefined; what joins it to the next one stays. */
  function sentence(text, least) {
    const [, begin, said, end] = EDGES.exec(text);
    if (whole.has(said) && sizeOf(said) >= least) return begin + whole.get(said) + end;
    for (const { words, size, pattern } of open) {
      const found = size >= least && pattern.exec(said);
      if (found) return begin + words.replace(/\{(\d+)\}/g, (_, place) => value(found[Number(place) + 1])) + end;
    }
    return undefined;
  }

  /** What stands in a place: a name, a text of its own (a comma after it is English), or several with marks between. */
  function value(text) {
    const said = text.replace(/[\s,;:]+$/, "");
    return Object.hasOwn(names, said) ? names[said] : sentence(said, 1) ?? pieces(text, 1);
  }

  /** Where a text that has marks in itself ends, such as `choose a smaller one, and enlarge it`; or the next part. */
  function endOfText(parts, at, least) {
    for (let end = Math.min(parts.length, at + MOST_PARTS); end > at + 1; end -= 1) {
      const text = parts.slice(at, end).join("");
      if (whole.has(text) && sizeOf(text) >= least) return end;
    }
    return at + 1;
  }

  /** Every known text of several, or of one that holds more than is known. */
  function pieces(text, least) {
    const parts = text.split(PIECE);
    if (parts.length === 1) return text;
    const known = (part) => (least === 1 && Object.hasOwn(names, part) ? names[part] : sentence(part, least) ?? part);
    const said = [];
    for (let at = 0; at < parts.length; at += 1) {
      const end = endOfText(parts, at, least);
      if (end > at + 1) said.push(whole.get(parts.slice(at, end).join("")));
      else said.push(at % 2 || !parts[at] ? parts[at] : known(parts[at]));
      at = end - 1;
    }
    return said.join("");
  }

  /** Sentence by sentence; one that is not known is tried together with the next ones. */
  function line(text) {
    const parts = text.split(SENTENCE);
    const said = [];
    for (let at = 0; at < parts.length; at += 2) {
      let found;
      let end = at;
      for (; found === undefined && end < parts.length && end < at + 2 * MOST_ENDS; end += 2) {
        found = sentence(parts.slice(at, end + 1).join(""), ENOUGH);
      }
      if (found === undefined) end = at + 2;
      said.push(found ?? pieces(parts[at], ENOUGH), parts[end - 1] ?? "");
      at = end - 2;
    }
    return said.join("");
  }

  return (text) => text.split(/(\n\s*)/).map((part, index) => (index % 2 ? part : line(part))).join("");
}
