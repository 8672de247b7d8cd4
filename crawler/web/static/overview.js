// All corpora and runs.

import { button, whyNone } from "./actions.js";
import { address, h, moment, morph, number, plural, rate, table } from "./dom.js";
import { follow } from "./live.js";
import { badge, bar, goes, left, progress, section, state, workers } from "./parts.js";

export function showOverview(main) {
  follow(
    "",
    (news) => {
      morph(main, h("main", {}, view(news)));
      main.removeAttribute("aria-busy");
    },
    (error) =>
      morph(
        main,
        h(
          "main",
          {},
          h("p", { class: "note warn" }, error),
          h("p", { class: "quiet" }, "This page goes on by itself."),
        ),
      ),
  );
}

function view({ runs, more }) {
  if (!runs.length) {
    return [
      h("h1", {}, "No run yet"),
      h("p", {}, "Start one in a terminal, and it appears here:"),
      h("pre", {}, "shardcrawl run urls.txt --rate 10"),
    ];
  }
  const going = runs.filter(goes);
  const ended = runs.filter((run) => !goes(run));
  return [
    h("h1", {}, "Runs"),
    going.length
      ? section("Going on", h("div", { class: "cards" }, going.map(card)))
      : h("p", { class: "quiet" }, "No run is under way."),
    corpora(ended),
    more ? h("p", { class: "quiet" }, `${plural(more, "older run")} in: shardcrawl runs`) : null,
    whyNone(),
  ];
}

function card(run) {
  const rest = left(run);
  return h(
    "article",
    { class: "card", "data-key": run.name },
    h("h3", {}, h("a", { href: address("runs", run.name) }, run.name), " ", state(run)),
    h("p", { class: "quiet" }, `corpus ${run.corpus}`),
    run.lost ? null : [bar(run), progress(run)],
    run.lost
      ? h("p", {}, run.in_use ? BEGINS_AGAIN : ["Nobody works on it. Go on with: ", h("code", {}, "shardcrawl run JOB")])
      : h("p", {}, h("strong", {}, `${rate(run.pace || 0)} keys/s`), rest ? `, ${rest} left` : "", `, ${workers(run)}`),
    run.limited_by ? h("p", { class: "limit" }, h("span", { class: "quiet" }, "Limited by "), run.limited_by) : null,
    run.outcomes.failed
      ? h("p", {}, h("a", { href: address("runs", run.name, "keys") }, plural(run.outcomes.failed, "failed key")))
      : null,
  );
}

function corpora(runs) {
  const names = [...new Set(runs.map((run) => run.corpus))];
  return names.map((corpus) => {
    const own = runs.filter((run) => run.corpus === corpus);
    const current = own.find((run) => run.current);
    return h(
      "section",
      { "data-key": `corpus ${corpus}` },
      h(
        "div",
        { class: "title" },
        h("h2", {}, corpus),
        h(
          "div",
          { class: "buttons" },
          own.filter((run) => run.state === "complete").length > 1
            ? h("a", { class: "button", href: `/diff?first=${encodeURIComponent(corpus)}` }, "What changed")
            : null,
          current && own.filter((run) => run.published_at).length > 1
            ? button("rollback", "complete", { corpus, run: current.name })
            : null,
        ),
      ),
      table(
        `Runs of corpus ${corpus}`,
        [["Run"], ["State"], ["Keys", "number"], ["Stored", "number"], ["Failed", "number"], ["Ended"]],
        own.map(row),
      ),
    );
  });
}

function row(run) {
  const { stored, unchanged, failed } = run.outcomes;
  const seen = run.current ? badge("readers see it", "good") : run.shortfall ? badge("held back", "warn") : null;
  return {
    key: run.name,
    cells: [
      h("a", { href: address("runs", run.name) }, run.name),
      [state(run), " ", seen],
      number(run.done),
      number(stored + unchanged),
      failed ? h("a", { href: address("runs", run.name, "keys") }, number(failed)) : "0",
      moment(run.finished_at),
    ],
  };
}
