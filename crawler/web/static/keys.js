// Keys that brought nothing, and one key.

import { button, whyNone } from "./actions.js";
import { address, ask, bytes, h, moment, number, table } from "./dom.js";
import { badge, section } from "./parts.js";

const HISTORY = / after \d+ attempts: /;
const TABS = ["failed", "refused", "gone"];

export async function showKeys(main, run, asked) {
  const outcome = asked.get("outcome") || "failed";
  const text = asked.get("text") || "";
  const place = address("api", "runs", run);
  const found = await ask(`${place}/keys?${new URLSearchParams({ outcome, text, behind: asked.get("behind") || "" })}`);
  const state = { run, outcome, text, of: found.state };
  const why = h("div", {}, h("p", { class: "quiet" }, "Counting reasons…"));
  main.replaceChildren(
    h("h1", {}, `Keys of ${run} that brought nothing`),
    tabs(state),
    search(state),
    outcome === "gone" ? "" : why,
    list(state, found, asked),
    whyNone() || "",
  );
  document.addEventListener("acted", () => location.reload());
  if (outcome === "gone") return;
  const { reasons, sampled } = await ask(`${place}/reasons`);
  why.replaceChildren(
    usual(
      state,
      reasons.filter((one) => one.outcome === outcome && one.reason !== null),
      sampled,
    ),
  );
}

function link(state, change) {
  const wanted = { outcome: state.outcome, text: state.text, ...change };
  return `${address("runs", state.run, "keys")}?${new URLSearchParams(Object.entries(wanted).filter(([, value]) => value))}`;
}

function tabs(state) {
  return h(
    "nav",
    { class: "tabs", "aria-label": "Outcome" },
    TABS.map((one) =>
      h(
        "a",
        { href: link(state, { outcome: one, text: "" }), "aria-current": one === state.outcome ? "page" : null },
        one,
      ),
    ),
  );
}

function search(state) {
  return h(
    "form",
    {
      class: "search",
      role: "search",
      onsubmit: (event) => {
        event.preventDefault();
        location.assign(link(state, { text: new FormData(event.target).get("text") }));
      },
    },
    h(
      "label",
      {},
      h("span", { class: "hidden" }, "A part of a key or a reason"),
      h("input", { type: "search", name: "text", value: state.text, placeholder: "A part of a key or a reason" }),
    ),
    h("button", {}, "Search"),
    state.text ? h("a", { class: "button", href: link(state, { text: "" }) }, "All") : null,
  );
}

function usual(state, reasons, sampled) {
  if (!reasons.length) return "";
  return h(
    "details",
    { open: !state.text },
    h("summary", {}, "Usual reasons"),
    table(
      "Usual reasons",
      [
        ["Reason", "wide"],
        [sampled ? "Keys seen" : "Keys", "number"],
      ],
      reasons.map((one) => ({
        key: one.reason,
        cells: [
          h("a", { href: link(state, { text: one.reason }) }, one.reason || "without a reason"),
          number(one.keys),
        ],
      })),
    ),
  );
}

function list(state, found, asked) {
  const all = state.text ? `${state.outcome} keys with “${state.text}” in their reason` : `all ${state.outcome} keys`;
  const retry = button(
    "retry",
    state.of,
    { run: state.run, outcome: state.outcome, reason: state.text || null, what: all },
    `Retry ${state.text ? "these" : `all ${state.outcome}`}`,
  );
  const more = found.more_behind
    ? h(
        "a",
        { class: "button", href: link(state, { behind: found.more_behind }) },
        found.looked_at ? "Search on" : "Next",
      )
    : null;
  const exact = found.exact
    ? h(
        "p",
        { class: "note" },
        "There is a key of exactly this name: ",
        h("a", { href: address("runs", state.run, "keys", found.exact) }, state.text),
      )
    : "";
  const looked = found.looked_at ? h("p", { class: "quiet" }, `Looked at ${number(found.looked_at)} keys so far.`) : "";
  if (!found.keys.length)
    return h(
      "div",
      {},
      exact,
      h(
        "p",
        { class: "empty" },
        asked.get("behind") || found.looked_at
          ? "No more of them here."
          : state.text
            ? "No key has that."
            : `No key is ${state.outcome}.`,
      ),
      looked,
      more,
    );
  const rows = found.keys.map((one) => ({
    key: one.digest,
    cells: [
      h("a", { href: address("runs", state.run, "keys", one.digest) }, one.key),
      [(one.reason || "").split(HISTORY)[0], " ", one.stale ? badge("has older rows", "warn") : null],
      one.status || "",
      number(one.attempts),
      moment(one.fetched_at),
    ],
  }));
  return h(
    "div",
    {},
    exact,
    retry && h("div", { class: "buttons" }, retry),
    table(
      `Keys that are ${state.outcome}`,
      [["Key", "wide"], ["Reason", "wide"], ["Status", "number"], ["Attempts", "number"], ["When"]],
      rows,
    ),
    looked,
    more,
  );
}

export async function showKey(main, run, digest) {
  const { page, tables, versions, deferred, state } = await ask(address("api", "runs", run, "keys", digest));
  document.addEventListener("acted", () => location.reload());
  if (!page && !deferred) {
    main.replaceChildren(
      h("h1", {}, "This key has no page now"),
      h("p", {}, "It waits in the queue, or is not in this run."),
      history(versions, digest),
    );
    return;
  }
  const title = page ? page.key : deferred.key;
  main.replaceChildren(
    h("h1", { class: "key" }, title),
    page ? onePage(page, run, digest, state) : "",
    deferred ? waits(deferred) : "",
    ...tables.map(records),
    page && page.body !== null ? section("Body", h("pre", { tabindex: "0" }, page.body)) : "",
    history(versions, digest),
    whyNone() || "",
  );
}

function onePage(page, run, digest, state) {
  const [reason, attempts] = (page.reason || "").split(HISTORY);
  const pairs = [
    ["Outcome", badge(page.outcome, page.outcome)],
    ["Reason", reason],
    ["Status", page.status],
    ["Attempts", number(page.attempts)],
    ["Fetched", moment(page.fetched_at)],
    ["URL", page.url],
    ["Responded", page.final_url],
    ["ETag", page.etag],
    ["Last-Modified", page.last_modified],
    ["Kind", page.kind],
    ["Content", page.content_type && `${page.content_type}, ${bytes(page.content_bytes || 0)}`],
  ];
  const failed = ["failed", "refused", "gone"].includes(page.outcome);
  return h(
    "div",
    {},
    h(
      "dl",
      { class: "pairs" },
      pairs
        .filter(([, value]) => value !== null && value !== undefined && value !== "")
        .map(([word, value]) => [h("dt", {}, word), h("dd", {}, value)]),
    ),
    attempts
      ? section(
          "Attempts (times are UTC)",
          h(
            "ol",
            {},
            attempts.split("; ").map((one) => h("li", {}, one)),
          ),
        )
      : null,
    failed
      ? h(
          "div",
          { class: "buttons" },
          button(
            "retry",
            state,
            { run, outcome: page.outcome, digest, what: `This key (${page.key})` },
            "Retry this key",
          ),
        )
      : null,
  );
}

function waits(deferred) {
  return section(
    "Waits for another attempt",
    h("p", {}, `${number(deferred.attempts)} so far:`),
    h(
      "ol",
      {},
      deferred.history.map((one) => h("li", {}, one)),
    ),
  );
}

function records({ table: name, records: rows }) {
  if (rows === null)
    return section(
      `Rows in ${name}`,
      h("p", { class: "quiet" }, "Finding them takes long: this table has no index by key yet."),
    );
  return section(
    `Rows in ${name}`,
    rows.length ? rows.map((row) => h("pre", { tabindex: "0" }, row)) : h("p", { class: "quiet" }, "None."),
  );
}

function history(versions, digest) {
  return section(
    "In each run of the corpus",
    table(
      "What became of this key",
      [["Run"], ["Outcome"], ["Status", "number"], ["Reason", "wide"], ["When"]],
      versions.map((one) => ({
        key: one.run,
        cells: [
          h("a", { href: address("runs", one.run, "keys", digest) }, one.run),
          one.outcome,
          one.status || "",
          (one.reason || "").split(HISTORY)[0],
          moment(one.fetched_at),
        ],
      })),
    ),
  );
}
