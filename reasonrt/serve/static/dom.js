// Elements and numbers. What models and documents have written becomes text, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

export const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const byId = (id) => document.getElementById(id);

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
export const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
export const list = (value) => (Array.isArray(value) ? value : []);
export const entries = (value) => (isObject(value) ? Object.entries(value) : []);
export const number = (value) => (isNumber(value) ? value : 0);
export const text = (value) => (typeof value === "string" ? value : value === undefined ? "" : JSON.stringify(value));

export const count = (value) => number(value).toLocaleString("en");
export const plural = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;
export const words = (name) => String(name).replaceAll("_", " ");

/** A number with about three digits. */
export function short(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  const shown = size >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(size >= 10 ? 1 : 2);
  return shown.replace("-", "−");
}

export const seconds = (value) => (isNumber(value) ? `${value.toFixed(value < 10 ? 2 : 1)} s` : "");

export function percent(share) {
  if (!isNumber(share)) return "–";
  return share > 0 && share < 0.005 ? "< 1 %" : `${Math.round(100 * share)} %`;
}
