// Elements of the page. Whatever comes from the document is set as text, never as markup.

import { formatted } from "./formats.js";

const SVG = "http://www.w3.org/2000/svg";

export const at = (id) => document.getElementById(id);

function made(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export const element = (name, attributes = {}, ...children) =>
  made(document.createElement(name), attributes, children);

export const drawn = (name, attributes = {}, ...children) =>
  made(document.createElementNS(SVG, name), attributes, children);

// A value of the document, written where it is found: so every number can be compared with status.
export function shown(page, path, format = "text") {
  const value = path.reduce((found, key) => found?.[key], page);
  const pointer = path.map((key) => `/${String(key).replaceAll("~", "~0").replaceAll("/", "~1")}`);
  const place = { "data-path": pointer.join(""), "data-format": format };
  return element("span", place, formatted(value, format));
}

export function cell(content, kind = "") {
  const children = Array.isArray(content) ? content : [content];
  return element("td", { class: kind || null }, ...children);
}

export const rowHead = (...content) => element("th", { scope: "row" }, ...content);

export function columnHead(text, kind = "") {
  return element("th", { scope: "col", class: kind || null }, text);
}

export function fill(table, heads, rows, caption = "") {
  const head = element("thead", {}, element("tr", {}, ...heads));
  const body = element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells)));
  const parts = caption ? [element("caption", {}, caption)] : [];
  table.replaceChildren(...parts, head, body);
}

// A table, or in its place the sentence that says why there is none.
export function fillOrSay(id, heads, rows) {
  const isEmpty = rows.length === 0;
  at(`${id}-empty`).hidden = !isEmpty;
  at(id).parentElement.hidden = isEmpty;
  if (!isEmpty) fill(at(id), heads, rows);
}

// The newest few, or all of them once the button below is pressed.
export function newest(id, items, few) {
  const button = at(`${id}-all`);
  button.hidden = items.length <= few;
  return "all" in button.dataset ? items : items.slice(0, few);
}
