// Tiles with a figure and its last minute each.

import { $, bytes, draw, duration, make, percent, whole } from "./elements.js";

const KEPT = 60; // points of a sparkline
const TILES = [
  { name: "Tokens per second", of: (now, before) => rate(now, before), show: (value) => whole(Math.round(value)) },
  { name: "Cache hit rate", of: (now) => now.hit_rate, show: percent, top: 1 },
  { name: "KV held by requests", of: (now) => now.usage, show: percent, top: 1 },
  { name: "KV in the tree", of: (now) => now.pages_cached / now.pages, show: percent, top: 1 },
  { name: "Running", of: (now) => now.running, show: whole },
  { name: "Waiting", of: (now) => now.waiting, show: whole },
];

let shown = null; // the model that the points are of
let before = null;
const points = TILES.map(() => []);

export function start() {
  for (const tile of TILES) {
    const svg = draw("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" });
    tile.area = draw("polygon", {});
    tile.line = draw("polyline", {});
    svg.append(tile.area, tile.line);
    tile.value = make("p", { className: "value", text: "–" });
    const name = make("p", { className: "name", text: tile.name });
    $("tiles").append(make("div", { className: "tile" }, name, tile.value, svg));
  }
}

export function show(model, time) {
  if (!model || !model.answers) {
    $("engine").textContent = model ? "the engine does not answer" : "not loaded; the first request loads it";
    return;
  }
  if (shown !== model.name) {
    shown = model.name;
    before = null;
    for (const row of points) row.length = 0;
  }
  const now = { ...model, time };
  TILES.forEach((tile, index) => {
    const value = tile.of(now, before);
    tile.value.textContent = tile.show(value);
    points[index].push(value);
    if (points[index].length > KEPT) points[index].shift();
    spark(tile, points[index]);
  });
  before = now;
  const kept = model.expires === null ? "stays loaded" : `unloaded in ${duration(model.expires)} when idle`;
  const parts = [`${model.device}, ${model.weights}`, `weights ${bytes(model.weight_bytes)}`];
  parts.push(`KV ${bytes(model.kv_bytes)}`, `context ${whole(model.context)}`, kept);
  $("engine").textContent = parts.join(" · ");
}

function rate(now, before) {
  return before ? Math.max(0, now.generated_tokens - before.generated_tokens) / (now.time - before.time) : 0;
}

function spark(tile, values) {
  const top = tile.top ?? Math.max(1, ...values);
  const at = (index) => 100 - (values.length - 1 - index) * (100 / (KEPT - 1));
  const line = values.map((value, index) => `${at(index).toFixed(1)},${(29 - (value / top) * 27).toFixed(1)}`);
  tile.line.setAttribute("points", line.join(" "));
  tile.area.setAttribute("points", `${at(0).toFixed(1)},30 ${line.join(" ")} 100,30`);
}
