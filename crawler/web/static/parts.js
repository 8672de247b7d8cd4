// Parts that several pages have.

import { h, number, plural, rate, duration } from "./dom.js";

export const OUTCOMES = ["stored", "unchanged", "gone", "refused", "failed"];
const STATES = { running: "good", paused: "warn", resolved: "good", complete: "done", cancelled: "warn" };

/** Of a run that Redis does not have as Postgres does, while somebody still works on it or opens it. */
export const BEGINS_AGAIN =
  "Keys went back into it, or Redis lost it: whoever works on it begins it again within seconds.";

export function badge(text, kind) {
  return h("span", { class: `badge ${kind || ""}` }, text);
}

/** Whether a run is not at its end. */
export function goes(run) {
  return run.state === "running" || run.state === "paused";
}

/** The state of a run; one that nobody works on says so. */
export function state(run) {
  if (run.lost && run.state === "paused") return badge("interrupted, paused", "warn");
  if (run.lost) return run.in_use ? badge("begins again", "good") : badge("interrupted", "warn");
  if (run.state === "running" && run.begins && !(run.workers && run.coordinator)) return badge("begins", "good");
  if (run.state === "running" && run.workers === 0) return badge("no worker", "bad");
  if (run.state === "running" && run.workers > 0 && !run.coordinator) return badge("no coordinator", "bad");
  return badge(run.state, STATES[run.state]);
}

/** Keys by outcome of all keys, as a bar. */
export function bar(run) {
  const all = Math.max(run.total || 0, run.done, 1);
  const share = Math.floor((100 * run.done) / all);
  const words = run.total ? `${share} % of ${number(run.total)} keys` : `${number(run.done)} keys`;
  const label = `${words} done: ${
    OUTCOMES.filter((one) => run.outcomes[one])
      .map((one) => `${number(run.outcomes[one])} ${one}`)
      .join(", ") || "none yet"
  }`;
  return h(
    "svg",
    { class: "bar", viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img", "aria-label": label },
    pieces(run.outcomes, all),
  );
}

function pieces(outcomes, all) {
  let at = 0;
  return OUTCOMES.filter((one) => outcomes[one]).map((one) => {
    const width = (1000 * outcomes[one]) / all;
    at += width;
    return h("path", { d: `M${at - width},0h${width}v10h-${width}z`, class: one });
  });
}

/** How long the rest takes at the pace of now. */
export function left(run) {
  if (run.state !== "running" || run.total === null || !run.pace) return null;
  return duration(Math.max(0, run.total - run.done) / run.pace);
}

export function progress(run) {
  const of = run.total
    ? ` of ${number(run.total)}${run.state === "running" && run.exhausted === false ? " (an estimate)" : ""}`
    : "";
  return h("p", {}, h("strong", {}, number(run.done)), `${of} keys done`);
}

/** Pairs of a word and a value, large; a value that is long gets more room. */
export function facts(...pairs) {
  return h(
    "dl",
    { class: "facts" },
    pairs
      .filter(Boolean)
      .map(([word, value, note]) =>
        h(
          "div",
          { class: value.length > 16 ? "long" : null },
          h("dt", {}, word),
          h("dd", {}, value),
          note && h("dd", { class: "quiet" }, note),
        ),
      ),
  );
}

export function pace(run) {
  return run.state === "running" && run.pace !== undefined
    ? [`Keys a second`, rate(run.pace), left(run) ? `${left(run)} left` : null]
    : null;
}

export function section(title, ...content) {
  return h("section", { "data-key": title }, h("h2", {}, title), content);
}

/** A part that is made while it is open; `know` keeps what the user has opened or closed, and shows it. */
export function folded(know, key, title, content, opensItself = false) {
  const open = know.toggled.has(key) !== opensItself;
  const onclick = (event) => {
    event.preventDefault(); // news that come at the same moment would undo what the browser does by itself
    if (!know.toggled.delete(key)) know.toggled.add(key);
    know.show();
  };
  return h("details", { open, "data-key": key }, h("summary", { onclick }, title), open && content());
}

export const workers = (run) => (run.workers ? plural(run.workers, "worker") : "no worker");
