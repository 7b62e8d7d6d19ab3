// Requests under way and those that ended last: how long each stage took, and why tokens had to be computed.

import { $, draw, duration, make } from "./elements.js";

const KEPT = 100;
const rows = new Map(); // number -> its element

export function show(underWay, ended) {
  const running = new Set(underWay.map((asked) => asked.number));
  for (const [number, element] of rows) {
    if (element.dataset.running && !running.has(number)) {
      element.remove();
      rows.delete(number);
    }
  }
  for (const asked of ended) put(asked, false);
  for (const asked of underWay) put(asked, true);
  while ($("rows").children.length > KEPT) {
    rows.delete(Number($("rows").lastElementChild.dataset.number));
    $("rows").lastElementChild.remove();
  }
  $("no-rows").hidden = rows.size > 0;
}

function put(asked, running) {
  const old = rows.get(asked.number);
  const open = old?.querySelector("details").open;
  const focused = old?.contains(document.activeElement);
  const row = make("li", { "data-number": asked.number }, detail(asked, running, open));
  if (running) row.dataset.running = "yes";
  if (old && Boolean(old.dataset.running) === running) old.replaceWith(row);
  else {
    old?.remove();
    $("rows").insertBefore(row, running ? $("rows").firstElementChild : $("rows").querySelector("li:not([data-running])"));
  }
  rows.set(asked.number, row);
  if (focused) row.querySelector("summary").focus();
}

function detail(asked, running, open) {
  const first = asked.answers[0];
  const failed = !running && asked.status >= 400;
  const what = asked.method === "PROGRAM" ? "program" : asked.route || asked.path;
  const parts = [`${what} · ${asked.model}`];
  if (first) parts.push(`${asked.prompt_tokens} + ${asked.completion_tokens} tokens`);
  else if (asked.tokens) parts.push(`${asked.tokens} tokens`);
  if (failed) parts.push(`status ${asked.status}`);
  const seconds = running ? Date.now() / 1000 - asked.began : asked.seconds;
  const summary = make(
    "summary",
    { className: running ? "running" : failed ? "failed" : "" },
    make("span", { className: "when", text: new Date(asked.began * 1000).toLocaleTimeString("en-GB") }),
    make("span", { className: "what", text: parts.join(" · ") }),
    make("span", { className: "bar" }, first ? bar(first) : ""),
    make("span", { className: "took", text: running ? "running" : duration(Math.max(0, seconds)) }),
  );
  const box = make("details", {}, summary, make("div", { className: "why" }, ...told(asked, first)));
  box.open = Boolean(open);
  return box;
}

function bar(answer) {
  const total = answer.total_s || 1e-9;
  const queued = Math.min(answer.queued_s / total, 1);
  const first = Math.min(Math.max(answer.first_s / total, queued), 1);
  const piece = (kind, from, to) =>
    draw("rect", { class: kind, x: from * 100, y: 0, width: (to - from) * 100, height: 10 });
  const label = `queued ${duration(answer.queued_s)}, first token after ${duration(answer.first_s)}, ended after ${duration(total)}`;
  const attributes = { viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": label };
  const pieces = [piece("queued", 0, queued), piece("prefill", queued, first), piece("decode", first, 1)];
  return draw("svg", attributes, ...pieces);
}

function told(asked, first) {
  const lines = [make("p", { text: `id ${asked.id}` })];
  asked.answers.forEach((answer, index) => {
    const name = asked.answers.length > 1 ? `${index + 1}: ` : "";
    lines.push(make("p", {}, make("strong", { text: name + why(answer) })));
  });
  const unseen = asked.answered - asked.answers.length;
  if (unseen > 0) lines.push(make("p", { text: `and ${unseen} answers more` }));
  if (first) {
    const stages = `queued ${duration(first.queued_s)} → first token ${duration(first.first_s)} → end ${duration(first.total_s)}`;
    const outcome = first.finish_reason ?? `chose “${first.choice}”`;
    const computed = `${asked.computed_tokens} tokens computed`;
    const drafts = Object.entries(first.drafts ?? {}).map(([name, { guessed, kept }]) => `${name}: ${kept} of ${guessed} guesses kept`);
    lines.push(make("p", { text: [stages, outcome, computed, ...drafts].join(" · ") }));
    if (first.preempted) lines.push(make("p", { text: `preempted ${first.preempted} times: KV pages were short` }));
  }
  return lines;
}

// Why the prompt, or some of it, was not in the cache.
function why({ prompt_tokens: prompt, cached_tokens: cached, diverged_at: diverged, diverged_text: text, finish_reason: end }) {
  if (end === "embedding") return `A vector: ${cached} of ${prompt} tokens came from the tree; one that is made of every token takes none.`;
  if (cached >= prompt - 1) return `The whole prompt was in the tree (${cached} of ${prompt} tokens; the last one is always computed).`;
  if (!diverged) return `A new prompt: nothing in the tree began with ${quoted(text)}.`;
  const same = `${cached} of ${prompt} tokens came from the tree.`;
  if (diverged >= prompt) return `${same} The rest is known text, whose KV had to be computed for its last page or its probabilities.`;
  return `${same} From token ${diverged + 1} on it is new: no earlier text has ${quoted(text)} there.`;
}

const quoted = (text) => `“${(text || "").replaceAll("\n", "⏎")}”`;
