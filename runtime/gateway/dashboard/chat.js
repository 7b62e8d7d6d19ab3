// The playground: a conversation over /generate, streamed, stopped at will.

import { $, duration, make } from "./elements.js";
import { events } from "./server.js";

const turns = [];
let asking = null;

export function start(onRefused) {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    send(onRefused);
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send(onRefused);
    }
  });
  $("stop").addEventListener("click", () => asking?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") asking?.abort();
  });
  $("clear").addEventListener("click", () => {
    asking?.abort();
    turns.length = 0;
    $("log").replaceChildren();
    $("question").focus();
  });
}

async function send(onRefused) {
  const question = $("question").value.trim();
  if (!question || asking) return;
  let body;
  const mine = show("user", question);
  try {
    body = request(question);
  } catch (error) {
    mine.remove();
    show("assistant bad", error.message);
    return;
  }
  $("question").value = "";
  const answer = show("assistant busy", "");
  const said = answer.querySelector(".said");
  asking = new AbortController();
  busy(true);
  let meta = null;
  try {
    await events("/generate", {
      body,
      signal: asking.signal,
      heard(_, piece) {
        if (piece.error) throw new Error(piece.error.message);
        if (piece.meta) meta = { ...piece.meta, finish_reason: piece.finish_reason };
        else said.append(piece.text);
        $("log").scrollTop = $("log").scrollHeight;
      },
    });
  } catch (error) {
    if (error.name !== "AbortError") {
      answer.classList.add("bad");
      said.append(`${said.textContent ? "\n" : ""}${error.message}`);
      onRefused(error);
    }
  }
  if (!answer.classList.contains("bad")) {
    turns.push({ role: "user", content: question }, { role: "assistant", content: said.textContent });
    answer.append(make("p", { className: "about", text: meta ? about(meta) : "stopped" }));
  }
  answer.classList.remove("busy");
  asking = null;
  busy(false);
  $("question").focus();
}

function request(question) {
  const messages = [...turns, { role: "user", content: question }];
  const system = $("system").value.trim();
  if (system) messages.unshift({ role: "system", content: system });
  const params = {};
  for (const name of ["temperature", "top_p", "top_k", "max_tokens", "seed"]) {
    if ($(name).value !== "") params[name] = Number($(name).value);
  }
  const body = { model: $("model").value, messages, params, stream: true };
  const schema = $("schema").value.trim();
  if (schema) {
    try {
      body.json_schema = JSON.parse(schema);
    } catch (error) {
      throw new Error(`The JSON schema is no JSON: ${error.message}`);
    }
  }
  return body;
}

function about(meta) {
  const rate = meta.total_s > meta.first_s ? (meta.completion_tokens - 1) / (meta.total_s - meta.first_s) : 0;
  const parts = [
    `${meta.completion_tokens} tokens`,
    `prompt ${meta.prompt_tokens}, ${meta.cached_tokens} of it cached`,
    `first token ${duration(meta.first_s)}`,
  ];
  if (rate) parts.push(`${Math.round(rate)} tokens/s`);
  if (meta.finish_reason !== "stop") parts.push(meta.finish_reason);
  return parts.join(" · ");
}

function show(kind, text) {
  $("log").querySelector(".hint")?.remove();
  const who = make("span", { className: "hidden", text: kind.startsWith("user") ? "You: " : "Model: " });
  const turn = make("div", { className: `turn ${kind}` }, who, make("div", { className: "said", text }));
  $("log").append(turn);
  $("log").scrollTop = $("log").scrollHeight;
  return turn;
}

function busy(yes) {
  $("send").hidden = yes;
  $("stop").hidden = !yes;
}
