// Pictures from a file, from a drop, from the camera: each becomes a square of bytes, or a sentence that says why not.
import { h } from "../kit/elements.js";
import { middleSquare, resized } from "./resize.js";

const MOST_BYTES = 40e6, MOST_SIDE = 4096;

/** The middle square of an image or a canvas, three bytes a pixel, of side `size`. */
export function squareOf(image, { size, middle }) {
  const { width, height } = image, { x, y, side } = middleSquare(width, height, middle);
  if (side < 1) throw new Error("this picture is empty");
  if (side > MOST_SIDE)
    throw new Error(`this picture, ${width} × ${height} pixels, is too large; its shorter side may have ${MOST_SIDE}`);
  const paint = new OffscreenCanvas(side, side).getContext("2d", { willReadFrequently: true });
  paint.fillStyle = "#fff"; // where a picture is transparent
  paint.fillRect(0, 0, side, side);
  paint.drawImage(image, x, y, side, side, 0, 0, side, side);
  return resized(paint.getImageData(0, 0, side, side).data, 4, side, size);
}

/** The picture in a file that the reader chose or dropped. */
export async function fromFile(file) {
  if (!file) throw new Error("that was no file; drop a picture, or choose one");
  if (file.size > MOST_BYTES)
    throw new Error(`the file ${file.name} has ${Math.round(file.size / 1e6)} MB; the most is ${MOST_BYTES / 1e6} MB`);
  try {
    return await createImageBitmap(file);
  } catch {
    throw new Error(`the file ${file.name} is no picture that this browser can read; try a JPEG, PNG or WebP file`);
  }
}

/** A view of the camera with two buttons. onTaken(canvas) is given the moment; nothing is sent or kept. */
export function camera({ onTaken, onProblem }) {
  const playing = { autoplay: true, playsinline: true, muted: true };
  const video = h("video", { class: "mqp-video", "aria-label": "What the camera sees", ...playing });
  const button = (label, click) => h("button", { type: "button", class: "mq-button", click }, label);
  const take = button("Take it", () => {
    const still = new OffscreenCanvas(video.videoWidth || 1, video.videoHeight || 1);
    still.getContext("2d").drawImage(video, 0, 0);
    close();
    onTaken(still);
  });
  const stop = button("Close the camera", () => close());
  const el = h("div", { class: "mqp-camera", hidden: true }, video, h("div", { class: "mq-buttons" }, take, stop));
  let stream = null;
  function close() {
    stream?.getTracks().forEach(track => track.stop());
    stream = null;
    video.srcObject = null;
    el.hidden = true;
  }
  async function open() {
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      return onProblem(error?.name === "NotAllowedError" ? "The camera was not allowed; choose a file instead."
        : "There is no camera to use here; choose a file instead.");
    }
    video.srcObject = stream;
    el.hidden = false;
    take.focus();
  }
  return { el, open, close, possible: Boolean(navigator.mediaDevices?.getUserMedia) };
}
