// Validation by round, one line a site, drawn by hand. Colour, mark and dash tell the sites apart,
// the legend has their last numbers, and the table below has all of them.

import { at, cell, columnHead, drawn, element, fill, rowHead, shown } from "./elements.js";

export const METRICS = {
  psnr_db: { title: "PSNR (dB)", name: "PSNR" },
  ssim_percent: { title: "SSIM (%)", name: "SSIM" },
};

const WIDTH = 560;
const HEIGHT = 260;
const LEFT = 44;
const RIGHT = 14;
const TOP = 14;
const BOTTOM = 30;
const COLOURS = 8;
const MOST_MARKED = 40;
const MOST_NUMBERS = 50;

const MARKS = [
  (x, y) => drawn("circle", { cx: x, cy: y, r: 4 }),
  (x, y) => drawn("rect", { x: x - 3.7, y: y - 3.7, width: 7.4, height: 7.4 }),
  (x, y) => drawn("path", { d: `M${x} ${y - 5}l5 5l-5 5l-5 -5z` }),
  (x, y) => drawn("path", { d: `M${x} ${y - 5}l4.8 8.4h-9.6z` }),
  (x, y) => drawn("path", { d: `M${x} ${y + 5}l4.8 -8.4h-9.6z` }),
  (x, y) => drawn("path", { d: `M${x - 5} ${y - 1.6}h3.4v-3.4h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4z` }),
  (x, y) => drawn("path", { d: `M${x} ${y - 5}l4.8 3.5l-1.8 5.6h-6l-1.8 -5.6z` }),
  (x, y) => drawn("path", { d: `M${x - 5} ${y}l3.2 -5h3.6l3.2 5l-3.2 5h-3.6z` }),
];

export function showCurves(page) {
  const hasAny = Object.keys(page.curves.psnr_db).length > 0;
  at("curves-empty").hidden = hasAny;
  for (const id of ["curves", "numbers"]) at(id).hidden = !hasAny;
  if (!hasAny) return;
  for (const metric of Object.keys(METRICS)) showMetric(page, metric);
  showNumbers(page);
}

// What a site looks like goes by its place in the federation, the same in every curve.
const placeOf = (site, sites) => Math.max(sites.indexOf(site), 0);

function showMetric(page, metric) {
  const worst = page.worst_now[metric]?.site ?? null;
  const curves = page.curves[metric];
  const figure = at(metric);
  const { title } = METRICS[metric];
  const call = worst ? [" ", element("span", { class: "tag" }, `▼ worst: ${worst}`)] : [];
  figure.replaceChildren(
    element("figcaption", {}, title, ...call),
    chart(curves, page.sites, worst, title),
    legend(page, metric, worst),
  );
}

function chart(curves, sites, worst, title) {
  const points = Object.values(curves).flat();
  const rounds = points.map(([round]) => round);
  const [low, high, step] = nice(points.map(([, value]) => value));
  const [first, last] = extremes(rounds);
  const x = (round) =>
    last === first
      ? (LEFT + WIDTH - RIGHT) / 2
      : LEFT + 8 + ((round - first) / (last - first)) * (WIDTH - LEFT - RIGHT - 16);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const order = [...new Set(rounds)].sort((a, b) => a - b);
  const validated = new Map(order.map((round, place) => [round, place]));
  const scale = { x, y, validated };
  const lines = Object.keys(curves).sort((a, b) => (a === worst) - (b === worst));
  const text = worst ? `; the worst site is ${worst}` : "";
  return drawn(
    "svg",
    {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      role: "img",
      "aria-label": `${title} by round, ${lines.length} sites${text}. Numbers are in the table below.`,
    },
    ...axes(x, y, { low, high, step, first, last }),
    ...lines.map((site) => curve(curves[site], placeOf(site, sites), { ...scale, site, worst })),
  );
}

const extremes = (values) =>
  values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);

// The smallest of 1, 2 or 5 times a power of ten that takes no more steps than that.
function stepOf(span, most) {
  const power = 10 ** Math.floor(Math.log10(span / most));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => span / n <= most);
}

// Whole steps around the values.
function nice(values) {
  const [least, most] = extremes(values);
  const span = Math.max(most - least, 0.01 * Math.abs(most), 1e-6);
  const step = stepOf(span, 5);
  const low = Math.floor((least - 0.02 * span) / step) * step;
  const high = Math.ceil((most + 0.02 * span) / step) * step;
  return [low, high, step];
}

function axes(x, y, { low, high, step, first, last }) {
  const parts = [];
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  for (let i = 0; low + i * step <= high + step / 2; i += 1) {
    const value = low + i * step;
    parts.push(
      drawn("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      drawn("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(digits)),
    );
  }
  const every = Math.max(1, stepOf(Math.max(last - first, 1), 8));
  for (let round = Math.ceil(first / every) * every; round <= last; round += every) {
    const place = { x: x(round), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" };
    parts.push(drawn("text", place, String(round)));
  }
  parts.push(drawn("text", { x: LEFT - 6, y: HEIGHT - BOTTOM + 16, "text-anchor": "end" }, "round"));
  return parts;
}

const written = ([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`;

// A line is broken where a round was validated without the site: nothing is made up in between.
function unbroken(points, validated) {
  const runs = [];
  let before = null;
  for (const point of points) {
    const place = validated.get(point[0]);
    if (before === null || place !== before + 1) runs.push([]);
    runs.at(-1).push(point);
    before = place;
  }
  return runs;
}

function curve(points, number, { x, y, validated, site, worst }) {
  const isWorst = site === worst;
  const runs = unbroken(points, validated).map((run) => run.map(([r, v]) => [x(r), y(v)]));
  const end = runs.at(-1).at(-1);
  const alone = runs.filter((run) => run.length === 1).map(([place]) => place);
  const marked = points.length <= MOST_MARKED ? runs.flat() : [...alone, end];
  const mark = MARKS[number % MARKS.length];
  const line = { class: isWorst ? "curve worst" : "curve" };
  return drawn(
    "g",
    { class: `s${number % COLOURS}` },
    ...runs.map((run) => drawn("polyline", { ...line, points: run.map(written).join(" ") })),
    drawn("g", { class: "mark" }, ...marked.map(([a, b]) => mark(a, b))),
    isWorst ? drawn("circle", { class: "ring", cx: end[0], cy: end[1], r: 9 }) : null,
  );
}

function legend(page, metric, worst) {
  const curves = page.curves[metric];
  const last = (site) => curves[site].at(-1)[1];
  const sites = Object.keys(curves).sort((a, b) => last(b) - last(a));
  const items = sites.map((site) => {
    const number = placeOf(site, page.sites);
    const path = ["curves", metric, site, curves[site].length - 1];
    return element(
      "li",
      { class: site === worst ? "worst" : null },
      sample(number, site === worst),
      `${site} `,
      shown(page, [...path, 1], "fixed2"),
      late(page, path, site) ? element("span", {}, " in round ", shown(page, [...path, 0], "count")) : null,
      site === worst ? element("span", {}, " ", element("span", { class: "tag" }, "▼ worst")) : null,
    );
  });
  return element("ul", { class: "legend" }, ...items);
}

// Whether a site's last number is of an older round than that of others.
function late(page, [, metric, site]) {
  const rounds = Object.values(page.curves[metric]).map((points) => points.at(-1)[0]);
  return page.curves[metric][site].at(-1)[0] < Math.max(...rounds);
}

function sample(number, isWorst) {
  const line = { class: isWorst ? "curve worst" : "curve", points: "1,7 29,7" };
  return drawn(
    "svg",
    { viewBox: "0 0 30 14", "aria-hidden": "true", class: `s${number % COLOURS}` },
    drawn("polyline", line),
    drawn("g", { class: "mark" }, MARKS[number % MARKS.length](15, 7)),
  );
}

export function showNumbers(page) {
  if (!at("numbers").open) return;
  for (const metric of Object.keys(METRICS)) {
    const sites = Object.keys(page.curves[metric]).sort();
    const rounds = new Set(Object.values(page.curves[metric]).flatMap((p) => p.map(([r]) => r)));
    const newest = [...rounds].sort((a, b) => b - a).slice(0, MOST_NUMBERS);
    at("numbers-note").textContent =
      rounds.size > MOST_NUMBERS ? `The last ${MOST_NUMBERS} rounds; all are in status.json.` : "";
    const rows = newest.map((round) => numbersRow(page, metric, sites, round));
    const heads = ["round", ...sites].map((text) => columnHead(text, "number"));
    fill(at(`${metric}-table`), heads, rows, METRICS[metric].title);
  }
}

function numbersRow(page, metric, sites, round) {
  const cells = sites.map((site) => {
    const index = page.curves[metric][site].findIndex(([r]) => r === round);
    const path = ["curves", metric, site, index, 1];
    return cell(index < 0 ? "–" : shown(page, path, "fixed2"), "number");
  });
  const [site, index] = sites
    .map((s) => [s, page.curves[metric][s].findIndex(([r]) => r === round)])
    .find(([, i]) => i >= 0);
  return [rowHead(shown(page, ["curves", metric, site, index, 0], "count")), ...cells];
}
