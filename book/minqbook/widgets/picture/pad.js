// A canvas to look at and to draw on, with a mouse, a finger, a pen, or the keys.
import { attr, h } from "../kit/elements.js";

const SIDE = 288; // pixels of the canvas
const PEN = 0.1; // of its side
const STEP = 0.04;
const INK = "#f4f4f0", PAPER = "#20364a"; // as the digits of the scenes: one colour on another

/** onDrawn() is told when a stroke ends. */
export function pad({ onDrawn }) {
  const node = h("canvas", { class: "mqp-pad", width: SIDE, height: SIDE, role: "img" });
  const paint = node.getContext("2d", { willReadFrequently: true });
  const cursor = h("i", { class: "mqp-cursor", "aria-hidden": "true", hidden: true });
  let drawing = false, at = null, pen = { x: 0.5, y: 0.3, down: false };

  function stroke(from, to) {
    Object.assign(paint, { lineWidth: PEN * SIDE, lineCap: "round", lineJoin: "round", strokeStyle: INK });
    paint.beginPath();
    paint.moveTo(from.x * SIDE, from.y * SIDE);
    paint.lineTo(to.x * SIDE + 0.01, to.y * SIDE);
    paint.stroke();
  }
  const where = event => {
    const box = node.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  };
  const lift = () => {
    if (at) onDrawn();
    at = null;
  };
  const showPen = () => {
    cursor.hidden = !drawing || document.activeElement !== node || !node.matches(":focus-visible");
    cursor.classList.toggle("mqp-down", pen.down);
    Object.assign(cursor.style, { left: `${100 * pen.x}%`, top: `${100 * pen.y}%` });
  };
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const inside = v => Math.max(PEN / 2, Math.min(1 - PEN / 2, v));

  attr(node, {
    pointerdown: event => {
      if (!drawing || event.button) return;
      node.setPointerCapture(event.pointerId);
      at = where(event);
      stroke(at, at);
      event.preventDefault();
    },
    pointermove: event => {
      if (!at) return;
      const to = where(event);
      stroke(at, to);
      at = to;
    },
    pointerup: lift, pointercancel: lift,
    focus: showPen, blur: showPen,
    keydown: event => {
      if (!drawing) return;
      if (event.key === " " || event.key === "Enter") {
        pen.down = !pen.down;
        if (pen.down) stroke(pen, pen); else onDrawn();
      } else if (moves[event.key]) {
        const [dx, dy] = moves[event.key], to = { ...pen, x: inside(pen.x + STEP * dx), y: inside(pen.y + STEP * dy) };
        if (pen.down) stroke(pen, to);
        pen = to;
      } else return;
      event.preventDefault();
      event.stopPropagation();
      showPen();
    },
  });

  return {
    el: h("div", { class: "mqp-stage" }, node, cursor),
    canvas: node,
    describe: text => attr(node, { "aria-label": text }),
    /** Show a square of pixels, or an image, instead. */
    show(image) {
      paint.imageSmoothingEnabled = image.width > 64;
      paint.imageSmoothingQuality = "high";
      paint.drawImage(image, 0, 0, SIDE, SIDE);
    },
    /** An empty sheet to draw on; or, with false, a picture to look at. */
    draw(on) {
      drawing = on;
      pen.down = false;
      attr(node, { tabindex: on ? 0 : null, role: on ? "application" : "img" });
      node.classList.toggle("mqp-open", on);
      if (on) {
        paint.fillStyle = PAPER;
        paint.fillRect(0, 0, SIDE, SIDE);
      }
      showPen();
    },
  };
}
