// Keys a second over time, drawn as SVG. It is a picture for the eye; its label says the same in words.

import { h, rate } from "./dom.js";

const HEIGHT = 220;
const LEFT = 48;
const BOTTOM = 24;
const TOP = 10;

/** Rates between neighbours of points [at, done, failed, requests], as {from, to, keys, failed}. */
export function rates(points) {
  const found = [];
  for (let index = 1; index < points.length; index += 1) {
    const [before, now] = [points[index - 1], points[index]];
    const seconds = now[0] - before[0];
    if (seconds > 0) {
      found.push({
        from: before[0],
        to: now[0],
        keys: Math.max(0, now[1] - before[1]) / seconds,
        failed: Math.max(0, now[2] - before[2]) / seconds,
      });
    }
  }
  return found;
}

function steps(most, wanted) {
  const raw = most / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
}

function clock(at, span) {
  const shown =
    span > 2 * 86400
      ? { month: "short", day: "numeric" }
      : { hour: "2-digit", minute: "2-digit", ...(span < 600 ? { second: "2-digit" } : {}) };
  return new Date(at * 1000).toLocaleString("en-GB", shown);
}

/** The chart of some points, `width` pixels wide. */
export function chart(points, width) {
  const found = rates(points);
  if (found.length < 2)
    return h(
      "p",
      { class: "quiet" },
      "The chart begins ten seconds after the run does. It is kept for a week after its end.",
    );
  const [first, last] = [found[0].from, found[found.length - 1].to];
  const most = Math.max(...found.map((one) => one.keys)) || 1;
  const step = steps(most, 4);
  const top = Math.ceil(most / step) * step;
  const x = (at) => LEFT + ((at - first) / (last - first)) * (width - LEFT - 8);
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const along = (field) =>
    found
      .map(
        (one, index) =>
          `${index ? "L" : "M"}${x(one.from).toFixed(1)},${y(one[field]).toFixed(1)}L${x(one.to).toFixed(1)},${y(one[field]).toFixed(1)}`,
      )
      .join("");
  const grid = [];
  for (let value = 0; value <= top + step / 2; value += step) {
    grid.push(
      h("line", { x1: LEFT, x2: width - 8, y1: y(value), y2: y(value), class: "grid" }),
      h("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, rate(value)),
    );
  }
  const marks = Math.max(2, Math.min(7, Math.floor(width / 130)));
  for (let mark = 0; mark <= marks; mark += 1) {
    const at = first + ((last - first) * mark) / marks;
    grid.push(
      h(
        "text",
        { x: x(at), y: HEIGHT - 6, "text-anchor": mark === 0 ? "start" : mark === marks ? "end" : "middle" },
        clock(at, last - first),
      ),
    );
  }
  const readout = h("output", { class: "readout", "aria-hidden": "true" });
  const line = h("line", { y1: TOP, y2: HEIGHT - BOTTOM, x1: -9, x2: -9, class: "cursor" });
  const now = found[found.length - 1].keys;
  const words = `Keys a second from ${clock(first, 0)} to ${clock(last, 0)}: ${rate(now)} at the end, ${rate(most)} at most.`;
  const picture = h(
    "svg",
    {
      viewBox: `0 0 ${width} ${HEIGHT}`,
      width,
      height: HEIGHT,
      role: "img",
      "aria-label": words,
      onpointermove: (event) => {
        const box = event.currentTarget.getBoundingClientRect();
        const at = first + ((event.clientX - box.left - LEFT) / (width - LEFT - 8)) * (last - first);
        const one = found.find(({ from, to }) => from <= at && at <= to);
        const figure = event.currentTarget.parentNode;
        for (const end of ["x1", "x2"]) figure.querySelector(".cursor").setAttribute(end, one ? x(at) : -9);
        figure.querySelector(".readout").textContent = one
          ? `${clock(at, 0)}: ${rate(one.keys)} keys/s${one.failed ? `, ${rate(one.failed)} failed/s` : ""}`
          : "";
      },
    },
    grid,
    h("path", { d: `${along("keys")}L${x(last)},${y(0)}L${x(first)},${y(0)}Z`, class: "area" }),
    h("path", { d: along("keys"), class: "line" }),
    found.some((one) => one.failed) && h("path", { d: along("failed"), class: "line bad" }),
    line,
  );
  return h("figure", { class: "chart" }, picture, readout);
}
