// One run.

import { button, whyNone } from "./actions.js";
import { chart } from "./chart.js";
import { address, ask, bytes, duration, h, moment, morph, number, plural, table } from "./dom.js";
import { follow } from "./live.js";
import { BEGINS_AGAIN, OUTCOMES, badge, bar, facts, folded, pace, progress, section, state } from "./parts.js";
import { upstreams } from "./upstreams.js";

const POINT_SECONDS = 5;
const SHOWN_REASONS = 6;
const RECOUNT_AFTER = 10_000;
// More workers or machines than these are folded.
const FEW = 20;

export function showRun(main, name) {
  const know = { points: [], reasons: null, ended: 0, changed: 0, counted: 0, asked: 0, toggled: new Set(), show };
  let news = null;
  let due = false;
  function show() {
    // several changes in one frame are shown once
    if (due || !news) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      morph(main, h("main", {}, view(news, know, main.clientWidth)));
      main.removeAttribute("aria-busy");
    });
  }
  async function why() {
    // counted anew when more have failed, but the server counts once in ten seconds for all pages
    const ended = news.outcomes.failed + news.outcomes.refused;
    const now = Date.now();
    if (ended !== know.ended) [know.ended, know.changed] = [ended, now];
    if (!ended) know.reasons = null;
    if (!ended || know.changed < know.counted || now - know.asked < RECOUNT_AFTER) return;
    know.asked = now;
    const found = await ask(`/api/runs/${encodeURIComponent(name)}/reasons`).catch(() => null);
    if (!found) return;
    [know.reasons, know.counted] = [found, now - 1000 * found.age];
    show();
  }
  document.addEventListener("acted", () => {
    know.asked = 0;
  });
  new ResizeObserver(show).observe(main);
  ask(`/api/runs/${encodeURIComponent(name)}/history`).then(
    (points) => {
      know.points = [
        ...points,
        ...know.points.filter((one) => !points.length || one[0] > points[points.length - 1][0]),
      ];
      show();
    },
    () => {},
  ); // what is wrong the news say, too
  follow(
    name,
    (found) => {
      news = found;
      if (found.point) add(know.points, found.point);
      show();
      why();
    },
    (error) => {
      if (!news)
        main.replaceChildren(
          h("p", { class: "note bad", role: "alert" }, error),
          h("p", {}, h("a", { href: "/" }, "All runs")),
        );
    },
  );
}

/** The last point grows until it is five seconds long. */
function add(points, point) {
  if (points.length > 1 && points[points.length - 1][0] - points[points.length - 2][0] < POINT_SECONDS) points.pop();
  if (!points.length || point[0] > points[points.length - 1][0]) points.push(point);
}

function view(run, know, width) {
  const of = { run: run.name, corpus: run.corpus };
  return [
    h(
      "div",
      { class: "title" },
      h("h1", {}, run.name, " ", state(run), " ", run.current ? badge("readers see it", "good") : null),
      h(
        "div",
        { class: "buttons" },
        ["pause", "resume"].map((verb) => button(verb, run.state, of)),
        button("publish", run.current ? "" : run.state, of),
        run.state === "complete" && run.before
          ? h(
              "a",
              {
                class: "button",
                href: `/diff?first=${encodeURIComponent(run.before)}&second=${encodeURIComponent(run.name)}`,
              },
              "What changed",
            )
          : null,
        button("cancel", run.state, of),
      ),
    ),
    notes(run),
    bar(run),
    progress(run),
    facts(
      pace(run),
      run.limited_by ? ["Limited by", run.limited_by] : null,
      run.state === "running" && !run.lost
        ? ["Workers", number(run.workers), run.coordinator ? null : "no coordinator"]
        : null,
      ["Began", moment(run.created_at)],
      run.finished_at ? ["Ended", moment(run.finished_at)] : null,
      run.requests
        ? ["Requests", number(run.requests), `${bytes(run.received)} of bodies${run.rebuilt ? ", since it was rebuilt" : ""}`]
        : null,
    ),
    section("Keys a second", chart(own(know.points, run), Math.max(280, width - 2))),
    section("Outcomes", outcomes(run)),
    know.reasons && know.reasons.reasons.length
      ? section("Why keys failed or were refused", reasons(run, know.reasons))
      : null,
    run.upstreams ? section("Upstreams", upstreams(run, know)) : null,
    run.stages.length ? section("Stages of the workers", stages(run)) : null,
    run.fleet ? section("Workers", fleet(run, know)) : null,
    run.queue ? section("Queue", queue(run)) : null,
    whyNone(),
  ];
}

/** A run of the same name that was deleted may have left points. */
function own(points, run) {
  return points.filter(([at]) => at * 1000 > Date.parse(run.created_at) - 60_000);
}

function notes(run) {
  const found = [];
  if (run.lost && run.in_use) found.push(["warn", BEGINS_AGAIN]);
  else if (run.lost) found.push(["warn", "Nobody works on it. Go on with: shardcrawl run JOB"]);
  else if (run.state === "running" && !run.workers)
    found.push(["bad", "No worker is there. Start one: shardcrawl work, or shardcrawl run JOB"]);
  if (!run.lost && run.state === "running" && !run.coordinator && !run.begins)
    found.push([
      "bad",
      "No coordinator is there: nothing new is planned. Start one: shardcrawl coordinate JOB, or shardcrawl run JOB",
    ]);
  run.waits.forEach((cause) => found.push(["bad", `Workers wait: ${cause}`]));
  if (run.shortfall) found.push(["warn", `It is not published: ${run.shortfall}`]);
  run.null_columns.forEach((words) => found.push(["warn", `Column ${words}`]));
  return found.map(([kind, words]) => h("p", { class: `note ${kind}`, "data-key": words }, words));
}

function outcomes(run) {
  const rows = OUTCOMES.map((one) => {
    const count = run.outcomes[one];
    const shown =
      count && ["failed", "refused", "gone"].includes(one)
        ? h("a", { href: `${address("runs", run.name, "keys")}?outcome=${one}` }, number(count))
        : number(count);
    return {
      key: one,
      cells: [
        [h("span", { class: `dot ${one}`, "aria-hidden": "true" }), one],
        shown,
        run.done ? `${((100 * count) / run.done).toFixed(1)} %` : "",
      ],
    };
  });
  return table("Keys by outcome", [["Outcome"], ["Keys", "number"], ["Share", "number"]], rows);
}

function reasons(run, { reasons: found, sampled }) {
  const rows = found
    .filter((one) => one.reason !== null)
    .slice(0, SHOWN_REASONS)
    .map((one) => ({
      key: one.outcome + one.reason,
      cells: [
        h(
          "a",
          {
            href: `${address("runs", run.name, "keys")}?${new URLSearchParams({ outcome: one.outcome, text: one.reason })}`,
          },
          one.reason || "without a reason",
        ),
        one.outcome,
        number(one.keys),
        button("retry", run.state, {
          run: run.name,
          outcome: one.outcome,
          reason: one.reason,
          what: `${one.outcome} keys with the reason “${one.reason}”`,
        }),
      ],
    }));
  return [
    table("Usual reasons", [["Reason", "wide"], ["Outcome"], [sampled ? "Keys seen" : "Keys", "number"], [""]], rows),
    sampled ? h("p", { class: "quiet" }, "Of very many, a sample is counted.") : null,
  ];
}

function stages(run) {
  const rows = run.stages.map((one) => ({
    key: one.name,
    cells: [
      one.name,
      [
        h("meter", {
          min: 0,
          max: 1,
          value: one.size ? Math.min(1, one.busy / one.size) : 0,
          "aria-label": `${one.busy} of ${one.size} busy`,
        }),
        ` ${number(one.busy)} of ${number(one.size)}`,
      ],
      number(one.waiting),
      number(one.items),
      one.items ? each(one.seconds / one.items) : "",
    ],
  }));
  return table(
    "Stages of the workers",
    [["Stage"], ["Busy"], ["Waiting", "number"], ["Items", "number"], ["Each", "number"]],
    rows,
  );
}

function each(seconds) {
  if (seconds >= 60) return duration(seconds);
  return seconds >= 1 ? `${seconds.toFixed(1)} s` : `${(1000 * seconds).toFixed(1)} ms`;
}

/** Workers by machine. Many workers, and many machines, are listed when the user opens them. */
function fleet(run, know) {
  if (!run.fleet.length) return h("p", { class: "quiet" }, "No worker is there.");
  const hosts = [...new Set(run.fleet.map((one) => one.host))];
  const isLong = run.fleet.length > FEW;
  const machines = () =>
    hosts.map((host) =>
      machine(
        know,
        host,
        run.fleet.filter((one) => one.host === host),
        isLong,
      ),
    );
  if (hosts.length <= FEW) return machines();
  return folded(know, "machines", `${plural(run.fleet.length, "worker")} on ${number(hosts.length)} machines`, machines);
}

function machine(know, host, own, isLong) {
  const rows = own.map((one) => ({
    key: one.worker,
    cells: [
      one.worker.slice(host.length + 1),
      one.shards ? `takes from ${plural(one.shards, "shard")}` : "has no block",
      one.waits_for || (one.unreachable ? `${plural(one.unreachable, "host")} without a response` : "nothing"),
    ],
  }));
  const title = `${host}: ${plural(own.length, "worker")}`;
  const listed = () => table(`Workers on ${host}`, [["Worker"], ["Does"], ["Waits for", "wide"]], rows);
  return folded(know, host, title, listed, !isLong);
}

function queue({ queue: found, queued, exhausted }) {
  return facts(
    ["Keys in the queue", number(queued), exhausted ? "the source is at its end" : "the source has more"],
    ["Blocks nobody has taken", number(found.unclaimed_blocks)],
    [
      "Deferred keys",
      number(found.deferred),
      found.next_due === null ? null : `the next in ${duration(found.next_due)}`,
    ],
    found.frontier ? ["Commits of found keys", number(found.frontier), "wait in Postgres"] : null,
  );
}
