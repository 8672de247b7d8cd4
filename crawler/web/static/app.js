// Which page this is.

import { begun } from "./actions.js";
import { address, h } from "./dom.js";
import { showDiff } from "./diff.js";
import { showKey, showKeys } from "./keys.js";
import { showOverview } from "./overview.js";
import { showRun } from "./run.js";

const main = document.getElementById("main");

function crumbs(...steps) {
  const items = steps.map(([text, href], index) =>
    h("li", {}, h("a", { href, "aria-current": index === steps.length - 1 ? "page" : null }, text)),
  );
  document.getElementById("crumbs").append(...items);
  document.title = [...steps.map(([text]) => text).reverse(), "shardcrawl"].join(" · ");
}

async function show() {
  const [, room, run, keys, digest] = location.pathname.split("/").map(decodeURIComponent);
  const asked = new URLSearchParams(location.search);
  if (room === "diff") {
    crumbs(["Compare", "/diff"]);
    await begun;
    return showDiff(main, asked);
  }
  if (room !== "runs") return showOverview(main);
  const steps = [[run, address("runs", run)]];
  if (keys) steps.push(["Keys", address("runs", run, "keys")]);
  if (digest) steps.push(["One key", location.pathname]);
  crumbs(...steps);
  if (!keys) return showRun(main, run);
  await begun;
  return digest ? showKey(main, run, digest) : showKeys(main, run, asked);
}

try {
  await Promise.all([begun, show()]);
} catch (error) {
  main.replaceChildren(
    h("div", { class: "note bad", role: "alert" }, h("strong", {}, "This cannot be shown. "), error.message),
    h("p", {}, h("a", { href: "/" }, "All runs")),
  );
}
main.removeAttribute("aria-busy");
