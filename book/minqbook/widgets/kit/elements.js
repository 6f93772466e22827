// Elements of a page and of a picture.

const SVG = "http://www.w3.org/2000/svg";

/** Set attributes: functions become listeners, null and false remove, true sets an empty one. */
export function attr(node, attributes) {
  for (const [k, v] of Object.entries(attributes)) {
    if (typeof v === "function") node.addEventListener(k, v);
    else if (v === null || v === undefined || v === false) node.removeAttribute(k);
    else node.setAttribute(k, v === true ? "" : v);
  }
  return node;
}

function grow(node, attributes, children) {
  attr(node, attributes);
  node.append(...children.flat(Infinity).filter(c => c !== null && c !== undefined && c !== false));
  return node;
}

/** An HTML element: h("p", { class: "note", click: f }, "text", child). */
export const h = (tag, attributes = {}, ...children) => grow(document.createElement(tag), attributes, children);
/** An SVG element. */
export const svg = (tag, attributes = {}, ...children) =>
  grow(document.createElementNS(SVG, tag), attributes, children);

/** x_int with a real subscript: in HTML sub("x", "int"), inside SVG text tsub("x", "int"). */
export const sub = (base, low) => [base, h("sub", {}, low)];
export const tsub = (base, low) => [base, svg("tspan", { dy: 3, "font-size": "0.8em" }, low)];

let serial = 0;
/** An id that no other element of the page has. */
export const unique = stem => `mq-${stem}-${(serial += 1)}-${Math.random().toString(36).slice(2, 7)}`;
