// News from the server, and saying so when there are none.

import { begun } from "./actions.js";

const STALE_AFTER = 10;

/** Call `show` with news about a run (or all of them, for ""), and keep the line in the header right. */
export function follow(run, show, trouble) {
  const line = document.getElementById("live");
  let source = null;
  let last = Date.now();
  let wrong = "";
  let said = null;

  function say(text, kind) {
    if (said === text) return; // a screen reader would read it again
    said = text;
    line.textContent = text;
    line.className = kind;
  }
  function look() {
    const silent = Math.floor((Date.now() - last) / 1000);
    if (document.hidden) return;
    if (silent >= STALE_AFTER)
      say(`no news for ${silent < 60 ? `${silent - (silent % 4)} s` : `${Math.floor(silent / 60)} min`}`, "bad");
    else if (wrong) say("waiting", "warn");
    else if (document.body.dataset.news) say("live", "good");
    document.body.classList.toggle("stale", silent >= STALE_AFTER);
  }
  function open() {
    source = new EventSource(`/api/news?run=${encodeURIComponent(run)}`);
    source.addEventListener("news", async (event) => {
      await begun; // the first news are asked for meanwhile
      last = Date.now();
      wrong = "";
      document.body.dataset.news = 1 + Number(document.body.dataset.news || 0);
      show(JSON.parse(event.data));
      look();
    });
    source.addEventListener("trouble", (event) => {
      last = Date.now();
      wrong = JSON.parse(event.data).error;
      trouble(wrong);
      look();
    });
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED)
        setTimeout(() => !document.hidden && (source.close(), open()), 2000);
    };
  }
  document.addEventListener("visibilitychange", () => {
    source.close(); // nobody looks
    if (!document.hidden) {
      last = Date.now();
      open();
    }
  });
  setInterval(look, 1000);
  open();
}
