// The upstreams of a run.

import { button } from "./actions.js";
import { h, number, plural, rate, table } from "./dom.js";
import { folded } from "./parts.js";

const FIRST_UPSTREAMS = 12;

/** Those with trouble first. Of many the first are shown, the others when the user opens them. */
export function upstreams(run, know) {
  const { shown, all, stopped, silent } = run.upstreams;
  if (!all) return h("p", { class: "quiet" }, "Nothing was sent in the last minute.");
  const trouble = [stopped && `${number(stopped)} paused or stopped`, silent && `${number(silent)} without a response`];
  const more = all - shown.length;
  return [
    h("p", {}, [plural(all, "upstream"), ...trouble].filter(Boolean).join(", ")),
    upstreamTable(run, "Upstreams, those with trouble first", shown.slice(0, FIRST_UPSTREAMS)),
    shown.length > FIRST_UPSTREAMS &&
      folded(know, "more upstreams", plural(shown.length - FIRST_UPSTREAMS, "more upstream"), () => [
        upstreamTable(run, "More upstreams", shown.slice(FIRST_UPSTREAMS)),
        more ? h("p", { class: "quiet" }, `${plural(more, "upstream")} more are not shown`) : null,
      ]),
  ];
}

function upstreamTable(run, caption, shown) {
  const rows = shown.map((one) => ({
    key: one.name,
    kind: one.stops || one.keys_waiting ? "trouble" : "",
    cells: [
      one.name,
      [rate(one.rate), "/s"],
      budget(one),
      one.failing ? `${(100 * one.failing).toFixed(0)} %` : "",
      one.throttled ? `${number(one.throttled)} of ${number(one.sent)}` : "",
      [one.trouble, one.trouble && one.fault ? "; " : "", one.fault],
      button("limit", run.state, { run: run.name, upstream: one.name, now: bound(one) }, "Limit"),
    ],
  }));
  return table(
    caption,
    [
      ["Upstream", "wide"],
      ["Sent", "number"],
      ["Budget used"],
      ["Failing", "number"],
      ["Throttled", "number"],
      ["Now", "wide"],
      [""],
    ],
    rows,
  );
}

function bound(one) {
  return `${one.limit === "none" ? "no bound" : one.limit}${one.concurrency ? `, ${one.concurrency} in flight` : ""}`;
}

function budget(one) {
  const words = bound(one);
  if (one.used === null) return words;
  return [
    h("meter", { min: 0, max: 1, value: one.used, "aria-label": `${Math.round(100 * one.used)} % of the budget` }),
    ` ${Math.round(100 * one.used)} % of ${words}`,
  ];
}
