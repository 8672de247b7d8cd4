// What can be changed: a dialog that says what will happen, asks for the token once, and says what has happened.

import { ask, h } from "./dom.js";

const DIALOG = document.getElementById("dialog");
const TOKEN = "shardcrawl token";
const WORDS = {
  pause: ["Pause", (of) => `Workers stop asking for keys of ${of.run}, until it is resumed.`],
  resume: ["Resume", (of) => `Workers go on with ${of.run}.`],
  limit: [
    "Change limit",
    (of) =>
      `What all workers together may ask of ${of.upstream}, at once, until it is changed again or the run is complete. Now: ${of.now}.`,
  ],
  retry: [
    "Retry",
    (of) => `${of.what} of ${of.run} go back into the run, and are requested again. Everything else stays.`,
  ],
  cancel: ["Cancel run", (of) => `Ends ${of.run} on all machines, for good. What is stored stays.`],
  publish: ["Publish", (of) => `Readers of corpus ${of.corpus} see ${of.run}, from one moment on.`],
  rollback: [
    "Roll back",
    (of) => `Readers of corpus ${of.corpus} see the run that was published before ${of.run}. Nothing is deleted.`,
  ],
};
const FIELDS = {
  limit: [
    ["rate", "Rate", '20, "50/s", "5000/h", "auto", "none"; "default": as the job says'],
    ["concurrency", "Requests in flight", 'a number, "none", or "default"'],
  ],
  publish: [["force", "Also when it falls short of [publish]", null]],
};
let session = { actions: {}, only_reads: false };

/** When it is known what may be done. */
export const begun = ask("/api/session").then((found) => {
  session = found;
});

/** A button for an action, where the server allows it and the run is in a state for it; else nothing. */
export function button(verb, state, of, label) {
  if (!(session.actions[verb] || []).includes(state)) return null;
  return h(
    "button",
    { type: "button", class: verb === "cancel" ? "danger" : "", onclick: () => open(verb, of) },
    label || WORDS[verb][0],
  );
}

/** Why there are no buttons, for the foot of a page. */
export function whyNone() {
  if (Object.keys(session.actions).length) return null;
  const why = session.only_reads
    ? "This page only reads."
    : "This page only reads: to act, start shardcrawl serve with SHARDCRAWL_TOKEN in its environment.";
  return h("p", { class: "quiet" }, why);
}

function open(verb, of) {
  const [title, describe] = WORDS[verb];
  const fields = (FIELDS[verb] || []).map(([name, label, hint]) =>
    h(
      "label",
      {},
      hint === null ? h("input", { type: "checkbox", name }) : null,
      h("span", {}, label),
      hint !== null && h("input", { name, autocomplete: "off" }),
      hint && h("small", {}, hint),
    ),
  );
  const known = sessionStorage.getItem(TOKEN);
  const token = h(
    "label",
    { hidden: known !== null },
    h("span", {}, "Token"),
    h("input", { name: "token", type: "password", autocomplete: "off", value: known || "", required: true }),
    h("small", {}, "The SHARDCRAWL_TOKEN of shardcrawl serve. This tab remembers it until it is closed."),
  );
  const wrong = h("p", { role: "alert", class: "note bad", hidden: true });
  const go = h("button", { class: verb === "cancel" ? "danger" : "primary" }, title);
  const form = h(
    "form",
    { onsubmit: (event) => send(event, verb, of, { token, wrong, go }) },
    h("h2", { id: "dialog-title" }, title),
    h("p", {}, describe(of)),
    fields,
    token,
    wrong,
    h("div", { class: "buttons" }, h("button", { type: "button", onclick: () => DIALOG.close() }, "Back"), go),
  );
  DIALOG.replaceChildren(form);
  DIALOG.showModal();
}

async function send(event, verb, of, { token, wrong, go }) {
  event.preventDefault();
  const given = new FormData(event.target);
  const { what, now, ...wanted } = of;
  for (const [name, , hint] of FIELDS[verb] || [])
    wanted[name] = hint === null ? given.has(name) : given.get(name) || undefined; // which is left out
  go.disabled = true;
  wrong.hidden = true;
  try {
    const headers = { "Content-Type": "application/json", Authorization: `Bearer ${given.get("token")}` };
    const found = await ask(`/api/actions/${verb}`, { method: "POST", headers, body: JSON.stringify(wanted) });
    sessionStorage.setItem(TOKEN, given.get("token"));
    DIALOG.close();
    document.getElementById("said").textContent = found.done;
    document.dispatchEvent(new Event("acted"));
  } catch (error) {
    if (error.status === 401) {
      sessionStorage.removeItem(TOKEN);
      token.hidden = false;
    }
    wrong.textContent = error.message;
    wrong.hidden = false;
    go.disabled = false;
  }
}
