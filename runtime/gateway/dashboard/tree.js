// The radix tree as an outline: who shares which run of tokens, what is in use, what may be evicted.

import { $, make, whole } from "./elements.js";

const OPEN = 3; // levels that are open at first
const touched = new Map(); // path -> whether a person opened or closed it

export function show({ total, nodes }) {
  const children = new Map();
  nodes.forEach(([parent], index) => children.set(parent, [...(children.get(parent) ?? []), index]));
  const focused = document.activeElement?.closest?.("#nodes details")?.dataset.path;
  $("nodes").replaceChildren(...list(nodes, children, -1, "", 0));
  if (focused !== undefined) {
    for (const box of $("nodes").querySelectorAll("details")) {
      if (box.dataset.path === focused) box.firstElementChild.focus();
    }
  }
  const tokens = nodes.reduce((sum, node) => sum + node[1], 0);
  const held = nodes.filter((node) => node[3] > 0).length;
  const part = nodes.length < total ? ` of ${whole(total)}, those used last` : "";
  $("tree-sum").textContent = `${whole(nodes.length)} runs${part} · ${whole(tokens)} tokens · ${held} in use`;
  $("no-nodes").hidden = total > 0;
}

export function clear() {
  $("nodes").replaceChildren();
  $("tree-sum").textContent = "";
  $("no-nodes").hidden = false;
}

function list(nodes, children, above, path, depth) {
  return (children.get(above) ?? []).map((index) => {
    const [, tokens, , locks, count, idle, text] = nodes[index];
    const own = `${path}/${text}:${tokens}`;
    const below = children.get(index) ?? [];
    const parts = label(tokens, locks, count, idle, text, count - below.length);
    if (!below.length) return make("li", {}, make("div", { className: "node" }, ...parts));
    const box = make("details", { "data-path": own }, make("summary", { className: "node" }, ...parts));
    box.append(make("ul", {}, ...list(nodes, children, index, own, depth + 1)));
    box.open = touched.get(own) ?? depth < OPEN;
    box.addEventListener("toggle", () => touched.set(own, box.open));
    return make("li", {}, box);
  });
}

function label(tokens, locks, count, idle, text, unseen) {
  const kind = locks ? "hot" : count ? "warm" : "cold";
  const uses = locks ? `${locks} ${locks > 1 ? "requests share it" : "request uses it"}` : count ? `${count} ${count > 1 ? "branches" : "branch"}` : "may be evicted";
  const more = unseen > 0 ? `, ${whole(unseen)} not shown` : "";
  const said = text.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  return [
    make("span", { className: `mark ${kind}`, role: "img", "aria-label": uses }),
    make("span", { className: "text", text: said, title: said }),
    make("span", { className: "size", text: `${whole(tokens)} tok · ${uses}${more}`, title: `${idle} uses of the tree ago` }),
  ];
}
