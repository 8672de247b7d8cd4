// Elements, and changing a page in place. Text from outside becomes text nodes here, never markup.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "line", "text", "g", "circle"]);

/** An element. Properties that begin with "on" are listeners; null and false leave an attribute or a child out. */
export function h(tag, properties, ...children) {
  const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name.startsWith("on")) node[name] = value;
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value === true ? "" : value);
  }
  node.append(
    ...children.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false && one !== ""),
  );
  return node;
}

/** Make `node` like `wanted`, and keep what the user has in hand: focus, and what is typed. */
export function morph(node, wanted) {
  const before = [...node.childNodes];
  [...wanted.childNodes].forEach((child, index) => {
    const old = before[index];
    if (!old) node.append(child);
    else if (old.nodeType !== child.nodeType || old.nodeName !== child.nodeName || id(old) !== id(child))
      old.replaceWith(child);
    else if (child.nodeType === Node.TEXT_NODE) {
      if (old.data !== child.data) old.data = child.data;
    } else {
      alike(old, child);
      morph(old, child);
    }
  });
  before.slice(wanted.childNodes.length).forEach((old) => old.remove());
}

function id(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") || node.id : "";
}

function alike(old, child) {
  for (const { name } of [...old.attributes]) {
    if (!child.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of child.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const name of ["onclick", "onsubmit", "onchange", "onpointermove"]) old[name] = child[name];
}

export const number = (value) => Math.round(value).toLocaleString("en");

/** A rate with as many digits as help. */
export const rate = (value) => (value >= 10 || value === 0 ? number(value) : value.toFixed(value >= 1 ? 1 : 2));

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit ? value.toFixed(1) : value} ${units[unit]}`;
}

export function duration(seconds) {
  const [day, hour, minute] = [86400, 3600, 60];
  seconds = Math.round(seconds);
  if (seconds >= 2 * day) return `${Math.round(seconds / day)} days`;
  if (seconds >= hour) return `${Math.floor(seconds / hour)} h ${Math.floor((seconds % hour) / minute)} min`;
  if (seconds >= minute) return `${Math.floor(seconds / minute)} min ${seconds % minute} s`;
  return `${seconds} s`;
}

/** A moment, as the user's clock shows it. */
export function moment(text) {
  if (!text) return "";
  const at = new Date(text);
  const day =
    at.toDateString() === new Date().toDateString() ? {} : { year: "numeric", month: "short", day: "numeric" };
  const shown = at.toLocaleString("en-GB", { ...day, hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return h("time", { datetime: at.toISOString(), title: at.toISOString() }, shown);
}

export const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

/** A table with a caption for screen readers. A column is [title, class]; the first cell of each row names it. */
export function table(caption, columns, rows) {
  const head = columns.map(([title, kind]) => h("th", { scope: "col", class: kind }, title));
  const body = rows.map(({ key, cells, kind }) =>
    h(
      "tr",
      { "data-key": key, class: kind },
      cells.map((cell, at) =>
        h(at ? "td" : "th", { scope: at ? null : "row", class: columns[at][1], "data-label": columns[at][0] }, cell),
      ),
    ),
  );
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: "hidden" }, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)),
  );
}

/** Ask the server. Throws an Error with its words. */
export async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("shardcrawl serve does not respond: is it still running?");
  }
  const found = await response.json().catch(() => ({}));
  if (!response.ok)
    throw Object.assign(new Error(found.error || `status ${response.status}`), { status: response.status });
  return found;
}

export const address = (...parts) => `/${parts.map(encodeURIComponent).join("/")}`;
