// Elements out of names, attributes and children. Text becomes text nodes: nothing that comes
// from the data is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

// Text for screen readers only.
export const unseen = (text) => el("span", { class: "unseen" }, text);

// Puts new children in place of the old ones; what had the focus and is still there keeps it.
export function replace(parent, ...children) {
  const active = document.activeElement;
  const key = parent.contains(active) ? active.dataset.key : undefined;
  parent.replaceChildren(...children.flat(Infinity).filter(Boolean));
  if (key !== undefined) {
    [...parent.querySelectorAll("[data-key]")].find((element) => element.dataset.key === key)?.focus({ preventScroll: true });
  }
}

// A long name may break behind what separates its parts.
export function breakable(text) {
  return text.split(/(?<=[-_./{,])/).flatMap((part, at) => (at ? [el("wbr"), part] : [part]));
}

export const podLink = (namespace, pod) =>
  `pod?${new URLSearchParams({ namespace, pod })}`;

export const serviceLink = (namespace, service) =>
  `.?${new URLSearchParams({ namespace: shownNamespace(namespace), service })}`;

export const shownNamespace = (namespace) => namespace || "_";
