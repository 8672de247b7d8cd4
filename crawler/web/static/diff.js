// What changed from one run to another.

import { address, ask, h, number, table } from "./dom.js";
import { section } from "./parts.js";

const WORDS = {
  added: "in the newer one only",
  changed: "other content",
  unchanged: "the same content",
  stale: "failed now, and has its older rows",
  gone: "the upstream has it no more",
  removed: "no longer in the source",
  failed: "failed now, had nothing or lost it",
  absent: "nothing in either",
};

export async function showDiff(main, asked) {
  const wanted = {
    first: asked.get("first") || "",
    second: asked.get("second") || "",
    table: asked.get("table") || "",
  };
  const form = h(
    "form",
    {
      class: "search",
      onsubmit: (event) => {
        event.preventDefault();
        const given = new FormData(event.target);
        location.assign(`/diff?${new URLSearchParams([...given].filter(([, value]) => value))}`);
      },
    },
    h(
      "label",
      {},
      h("span", {}, "Older run, or a corpus"),
      h("input", { name: "first", value: wanted.first, required: true }),
    ),
    h("label", {}, h("span", {}, "Newer run"), h("input", { name: "second", value: wanted.second })),
    h("button", {}, "Compare"),
  );
  const result = h(
    "div",
    { role: "status" },
    wanted.first
      ? h("p", { class: "quiet" }, "Comparing… with millions of keys it takes a while.")
      : h("p", { class: "quiet" }, "A corpus alone: the run that readers see, and the one before."),
  );
  main.replaceChildren(h("h1", {}, "What changed"), form, result);
  main.removeAttribute("aria-busy");
  if (!wanted.first) return;
  try {
    const found = await ask(`/api/diff?${new URLSearchParams(wanted)}`);
    result.replaceChildren(view(found, wanted));
  } catch (error) {
    result.replaceChildren(h("p", { class: "note bad", role: "alert" }, error.message));
  }
}

function view(found, wanted) {
  const all = Object.values(found.keys).reduce((sum, count) => sum + count, 0);
  const keys = h("div", { "aria-live": "polite" });
  const rows = Object.entries(found.keys).map(([change, count]) => ({
    key: change,
    cells: [
      count && !["unchanged", "absent"].includes(change)
        ? h("button", { type: "button", class: "link", onclick: () => show(keys, wanted, found, change) }, change)
        : change,
      number(count),
      all ? `${((100 * count) / all).toFixed(1)} %` : "",
      WORDS[change],
    ],
  }));
  return h(
    "div",
    {},
    h(
      "p",
      {},
      "From ",
      h("a", { href: address("runs", found.old) }, found.old),
      " to ",
      h("a", { href: address("runs", found.new) }, found.new),
      wanted.table ? `, by the rows in ${wanted.table}` : "",
    ),
    found.comparable
      ? null
      : h(
          "p",
          { class: "note warn" },
          "They were not made by the same settings and parser: keys may be changed by that alone.",
        ),
    found.waiting
      ? h(
          "p",
          { class: "note" },
          "A newer run is not published: ",
          h("a", { href: `/diff?${new URLSearchParams({ first: found.new, second: found.waiting })}` }, found.waiting),
        )
      : null,
    table("Keys by change", [["Change"], ["Keys", "number"], ["Share", "number"], ["Means", "wide"]], rows),
    keys,
    found.rows.length
      ? section(
          "Tables",
          table(
            "Rows of each table",
            [["Table"], ["Rows then", "number"], ["Rows now", "number"]],
            found.rows.map((one) => ({
              key: one.table,
              cells: [
                h("a", { href: `/diff?${new URLSearchParams({ ...wanted, table: one.table })}` }, one.table),
                number(one.then),
                number(one.now),
              ],
            })),
          ),
        )
      : null,
    wanted.table
      ? h(
          "p",
          {},
          h("a", { href: `/diff?${new URLSearchParams({ first: wanted.first, second: wanted.second })}` }, "All pages"),
        )
      : null,
  );
}

async function show(place, wanted, found, change) {
  place.replaceChildren(h("p", { class: "quiet" }, "Looking…"));
  try {
    const keys = await ask(`/api/diff/keys?${new URLSearchParams({ ...wanted, change })}`);
    place.replaceChildren(
      h("h2", {}, `Keys: ${change}`),
      h(
        "ul",
        { class: "keys" },
        keys.map((key) => h("li", {}, key)),
      ),
      keys.length < found.keys[change]
        ? h(
            "p",
            { class: "quiet" },
            `The first ${number(keys.length)}; all of them: shardcrawl diff ${found.old} ${found.new} --keys`,
          )
        : "",
    );
  } catch (error) {
    place.replaceChildren(h("p", { class: "note bad", role: "alert" }, error.message));
  }
}
