// Puts the page together: one stream of events feeds tiles, requests and tree; the picker says of which model.

import * as chat from "./chat.js";
import { $, make } from "./elements.js";
import * as live from "./live.js";
import * as requests from "./requests.js";
import { events, useKey } from "./server.js";
import * as tree from "./tree.js";

const THEME = "branchwork-theme";
let watching = null;

async function watch() {
  watching?.abort();
  const mine = (watching = new AbortController());
  let wait = 1000;
  while (!mine.signal.aborted) {
    try {
      const of = encodeURIComponent($("model").value);
      await events(`/dashboard/events?tree=${of}`, { signal: mine.signal, heard: hear });
      status("bad", "the server has ended; trying again");
    } catch (error) {
      if (mine.signal.aborted) return;
      refused(error);
      if (error.status === 401) return;
      status("bad", `no connection; trying again (${error.message})`);
    }
    await new Promise((resume) => setTimeout(resume, wait));
    wait = Math.min(wait * 2, 10000);
  }
}

function hear(name, value) {
  if (name === "tree") {
    if (value.model === $("model").value) tree.show(value);
    return;
  }
  if (name !== "now") return;
  const chosen = names(value.names);
  const model = value.models.find((one) => one.name === chosen);
  live.show(model, value.time);
  requests.show(value.under_way, value.ended);
  const running = value.under_way.length;
  const loaded = value.models.length === 1 ? "1 model loaded" : `${value.models.length} models loaded`;
  const stuck = value.models.filter((one) => !one.answers).map((one) => one.name);
  if (stuck.length) status("bad", `no answer from ${stuck.join(", ")}`);
  else status("well", `${loaded} · ${running} ${running === 1 ? "request" : "requests"} under way`);
}

// Fills the picker; the first of the names is the choice at first, and then its tree is wanted.
function names(all) {
  const picker = $("model");
  const had = [...picker.options].map((option) => option.value);
  if (had.join("\n") !== all.join("\n")) {
    const chosen = picker.value;
    picker.replaceChildren(...all.map((name) => make("option", { value: name, text: name })));
    picker.value = all.includes(chosen) ? chosen : all[0];
    if (picker.value !== chosen) watch();
  }
  return picker.value;
}

function status(kind, text) {
  const line = $("status");
  line.className = kind;
  if (line.textContent !== text) line.textContent = text;
}

function refused(error) {
  if (error.status !== 401) return;
  $("locked").hidden = false;
  status("bad", "locked");
  $("key").focus();
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  const other = name === "dark" ? "Light" : "Dark";
  $("theme").textContent = other;
  $("theme").setAttribute("aria-label", `${other} colours`);
}

const dark = () =>
  (localStorage.getItem(THEME) ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

$("theme").addEventListener("click", () => {
  localStorage.setItem(THEME, dark() ? "light" : "dark");
  theme(localStorage.getItem(THEME));
});
$("locked").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value);
  $("locked").hidden = true;
  watch();
});
$("model").addEventListener("change", () => {
  tree.clear();
  watch();
});
theme(dark() ? "dark" : "light");
live.start();
chat.start(refused);
watch();
